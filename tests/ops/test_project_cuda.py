"""Projection by csrc/project.cu at sizes where it takes other ways, against sums in float64.

Tolerance relative to the sum of absolute terms: m terms are added in float32, m 2^-24, m <= 2^13
here but where all are 1; a result in float16 or bfloat16 is rounded once, 2^-11 and 2^-8.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from hetmerge.errors import BackendError
from hetmerge.ops import project

pytestmark = pytest.mark.gpu
RTOL = {torch.float32: 2.0**-11, torch.float16: 2.0**-10, torch.bfloat16: 2.0**-7}


def draw(
    shapes: list[tuple[int, ...]], out: tuple[int, int], dtype: torch.dtype
) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    rng = torch.Generator().manual_seed(0)
    weights = [torch.randn(shape, generator=rng).to("cuda", dtype) for shape in shapes]
    labels = [
        [torch.randint(out[axis], (shape[axis],), generator=rng).cuda() for shape in shapes]
        for axis in (0, 1)
    ]
    return weights, labels[0], labels[1]


def check(
    weights: list[Tensor], rows: list[Tensor], cols: list[Tensor], out: tuple[int, int]
) -> Tensor:
    found = project(weights, rows, cols, *out, backend="cuda")
    assert torch.equal(found, project(weights, rows, cols, *out, backend="cuda"))
    members = torch.bincount(torch.cat(rows), minlength=out[0])
    total = torch.zeros(2, *out, *weights[0].shape[2:], dtype=torch.float64, device="cuda")
    for weight, r, c in zip(weights, rows, cols, strict=True):
        scaled = weight.double() / members[r].view(-1, *[1] * (weight.ndim - 1))
        for target, terms in zip(total, (scaled, scaled.abs()), strict=True):
            part = terms.new_zeros(len(terms), *target.shape[1:]).index_add_(1, c, terms)
            target.index_add_(0, r, part)
    error = (found.double() - total[0]).abs()
    # float16 below 2^-14 is spaced by 2^-24
    assert bool((error <= RTOL[found.dtype] * total[1] + 2.0**-24).all())
    return found


@pytest.mark.parametrize("dtype", list(RTOL), ids=str)
@pytest.mark.parametrize("width", [100, 520, 4096, 4100, 14336, 20000, 60000])
def test_lengths_of_rows(dtype: torch.dtype, width: int) -> None:
    """In shared memory or not; one block or several for a row; whole 16 bytes or not."""
    out = (50, width)
    check(*draw([(60, width), (40, width // 2 + 1)], out, dtype), out)


@pytest.mark.parametrize("dtype", list(RTOL), ids=str)
@pytest.mark.parametrize("width", [100, 4096, 14336])
def test_columns_that_stay(dtype: torch.dtype, width: int) -> None:
    """Of one parent, read past shared memory; the other's are gathered before or after."""
    out = (50, width)
    weights, rows, cols = draw([(60, width), (40, width)], out, dtype)
    for parent in (0, 1):
        labels = [*cols]
        labels[parent] = torch.arange(width, device="cuda")
        found = check(weights, rows, labels, out)
        given = [None if m == parent else x for m, x in enumerate(labels)]
        assert torch.equal(found, project(weights, rows, given, *out, backend="cuda"))


@pytest.mark.parametrize("dtype", list(RTOL), ids=str)
def test_kernels_of_convolutions(dtype: torch.dtype) -> None:
    out = (64, 600)
    weights, rows, cols = draw([(60, 512, 3, 3), (70, 256, 3, 3)], out, dtype)
    plain = check(weights, rows, cols, out)
    last = [weight.to(memory_format=torch.channels_last) for weight in weights]
    assert torch.equal(check(last, rows, cols, out), plain)


@pytest.mark.parametrize("clusters", [1, 3, 70000])
def test_members_of_clusters(clusters: int) -> None:
    """All rows, or all columns, of few clusters; more clusters than shared memory counts."""
    for out in ((clusters, 24), (24, clusters)):
        check(*draw([(1000, 24), (24, 1000)], out, torch.float32), out)


def test_transposed_parents_give_a_transposed_result() -> None:
    out = (300, 200)
    weights, rows, cols = draw([(250, 180), (170, 220)], out, torch.float32)
    found = check([weight.T.contiguous().T for weight in weights], rows, cols, out)
    assert torch.equal(found, check(weights, rows, cols, out))
    assert found.T.is_contiguous()


def test_offsets_beyond_32_bits() -> None:
    rows, width = 150_000, 16_384  # 2.5e9 elements
    weight = torch.zeros(rows, width, dtype=torch.bfloat16, device="cuda")
    weight[-3:] = 1.0
    labels = torch.zeros(width, dtype=torch.int32, device="cuda")
    found = project([weight], None, [labels], rows, 4, backend="cuda", out_dtype=torch.float32)
    assert torch.equal(found[-3:, 0], torch.full((3,), float(width), device="cuda"))
    assert int(found.count_nonzero()) == 3


def test_float64_is_left_to_others() -> None:
    weight = torch.ones(2, 2, dtype=torch.float64, device="cuda")
    with pytest.raises(BackendError, match="a parent is float64"):
        project([weight], None, None, 2, 2, backend="cuda")
    assert project([weight], None, None, 2, 2).dtype == torch.float64
