"""Triton projection against sums in float64, in the interpreter, or on a GPU where there is one.

Tolerance relative to the sum of absolute terms: m terms are added in float32, m 2^-24, m <= 300
here; a result in float16 or bfloat16 is rounded once, 2^-11 and 2^-8 (2^-7 in the interpreter,
which truncates).
"""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hetmerge.kernels import launch_project
from hetmerge.kernels import project as module

FIXED = settings(derandomize=True, deadline=None, database=None, max_examples=40)
RTOL = {torch.float32: 2.0**-15, torch.float16: 2.0**-10, torch.bfloat16: 2.0**-7}
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def draw(
    seed: int,
    shapes: Sequence[tuple[int, ...]],
    dtypes: Sequence[torch.dtype],
    out: tuple[int, ...],
    layout: str = "plain",
) -> tuple[list[Tensor | None], list[Tensor], list[Tensor] | None, list[Tensor]]:
    rng = torch.Generator().manual_seed(seed)
    weights: list[Tensor | None] = []
    for shape, dtype in zip(shapes, dtypes, strict=False):
        weight = torch.randn(shape, generator=rng).to(DEVICE, dtype)
        if layout == "last" and weight.ndim == 4:
            weight = weight.to(memory_format=torch.channels_last)
        if layout == "odd":
            wide = torch.zeros(*shape[:-1], 2 * shape[-1] + 1, dtype=dtype, device=DEVICE)
            wide[..., 1::2] = weight
            weight = wide[..., 1::2]
        if layout == "transposed" and weight.ndim > 1:
            weight = weight.transpose(0, 1).contiguous().transpose(0, 1)
        weights.append(weight)

    def labels(size: int, clusters: int) -> Tensor:
        return torch.randint(clusters, (size,), generator=rng, dtype=torch.int32).to(DEVICE)

    rows = [labels(shape[0], out[0]) for shape in shapes]
    cols = None if len(out) == 1 else [labels(shape[1], out[1]) for shape in shapes]
    factors = [torch.rand(shape[0], generator=rng).to(DEVICE) for shape in shapes]
    return weights, rows, cols, factors


def check(
    weights: Sequence[Tensor | None],
    rows: Sequence[Tensor],
    cols: Sequence[Tensor] | None,
    factors: Sequence[Tensor],
    shape: tuple[int, ...],
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    out = torch.full(shape, float("nan"), dtype=dtype, device=DEVICE)
    launch_project(weights, rows, cols, factors, out)
    expected = torch.zeros(2, *shape, dtype=torch.float64, device=DEVICE)
    for m, weight in enumerate(weights):
        if weight is None:
            continue
        scaled = weight.double() * factors[m].double().reshape(-1, *[1] * (weight.ndim - 1))
        for total, term in zip(expected, (scaled, scaled.abs()), strict=True):
            part = term
            if cols is not None:
                part = term.new_zeros(len(term), *shape[1:]).index_add_(1, cols[m].long(), term)
            total.index_add_(0, rows[m].long(), part)
    error = (out.double() - expected[0]).abs()
    # float16 below 2^-14 is spaced by 2^-24
    assert bool((error <= RTOL[dtype] * expected[1] + 2.0**-24).all())
    return out


@FIXED
@given(
    seed=st.integers(0, 2**31),
    sizes=st.lists(
        st.tuples(st.sampled_from([0, 1, 3, 16, 33]), st.sampled_from([0, 1, 5, 16, 40])),
        min_size=1,
        max_size=3,
    ),
    out=st.tuples(st.sampled_from([1, 16, 21]), st.sampled_from([1, 16, 35])),
    trailing=st.sampled_from([(), (3, 3), (1, 2), (4,)]),
    dtypes=st.lists(st.sampled_from(list(RTOL)), min_size=3, max_size=3),
    out_dtype=st.sampled_from(list(RTOL)),
    layout=st.sampled_from(["plain", "last", "odd", "transposed"]),
    missing=st.integers(0, 4),
)
def test_matrices_and_kernels(
    seed: int,
    sizes: list[tuple[int, int]],
    out: tuple[int, int],
    trailing: tuple[int, ...],
    dtypes: list[torch.dtype],
    out_dtype: torch.dtype,
    layout: str,
    missing: int,
) -> None:
    shapes = [(*size, *trailing) for size in sizes]
    weights, rows, cols, factors = draw(seed, shapes, dtypes, (*out, *trailing), layout)
    if missing < len(weights):
        weights[missing] = None
    check(weights, rows, cols, factors, (*out, *trailing), out_dtype)


@pytest.mark.parametrize("sizes", [(1,), (50, 3), (0, 7, 300)])
@pytest.mark.parametrize("layout", ["plain", "odd"])
def test_vectors(sizes: tuple[int, ...], layout: str) -> None:
    shapes = [(size,) for size in sizes]
    check(*draw(0, shapes, [torch.float32, torch.bfloat16, torch.float16], (20,), layout), (20,))


@pytest.mark.parametrize("trailing", [(), (3, 2)])
def test_rows_longer_than_a_program_holds(
    monkeypatch: pytest.MonkeyPatch, trailing: tuple[int, ...]
) -> None:
    monkeypatch.setattr(module, "LONGEST", 32)
    monkeypatch.setattr(module, "DIRECT", 64)
    shapes = [(9, 30, *trailing), (12, 50, *trailing)]
    drawn = draw(0, shapes, [torch.float32, torch.bfloat16], (14, 60, *trailing), "transposed")
    check(*drawn, (14, 60, *trailing))


def test_sorted_and_counted_labels_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = draw(0, [(40, 30), (20, 50)], [torch.float32] * 2, (25, 60))
    counted = check(*drawn, (25, 60))
    monkeypatch.setattr(module, "MOST_COUNTED", 35)
    assert torch.equal(check(*drawn, (25, 60)), counted)


def test_one_cluster_takes_all_and_others_are_empty() -> None:
    weights, rows, cols, factors = draw(0, [(40, 30), (20, 50)], [torch.float32] * 2, (7, 9))
    assert cols is not None
    for labels in (*rows, *cols):
        labels.fill_(5)
    out = check(weights, rows, cols, factors, (7, 9))
    assert int((out != 0).sum()) == 1


def test_no_parent_gives_zeros() -> None:
    labels = [torch.zeros(3, dtype=torch.int32, device=DEVICE)]
    out = torch.full((4, 5), float("nan"), device=DEVICE)
    launch_project([None], labels, labels, [torch.ones(3, device=DEVICE)], out)
    assert torch.equal(out, torch.zeros(4, 5, device=DEVICE))


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", list(RTOL), ids=str)
def test_large_on_the_device(dtype: torch.dtype) -> None:
    shapes = [(4096, 4096), (3072, 2048)]
    drawn = draw(0, shapes, [dtype] * 2, (4096, 4096))
    out = check(*drawn, (4096, 4096), dtype)
    assert torch.equal(out, check(*drawn, (4096, 4096), dtype))
    kernels = [(512, 512, 3, 3), (512, 256, 3, 3)]
    check(*draw(0, kernels, [dtype] * 2, (640, 600, 3, 3), "last"), (640, 600, 3, 3), dtype)


@pytest.mark.gpu
def test_offsets_beyond_32_bits() -> None:
    rows, cols = 150_000, 16_384  # 2.5e9 elements
    weight = torch.zeros(rows, cols, dtype=torch.bfloat16, device="cuda")
    weight[-3:] = 1.0
    row_labels = torch.arange(rows, device="cuda", dtype=torch.int32)
    col_labels = torch.zeros(cols, device="cuda", dtype=torch.int32)
    out = torch.empty(rows, 4, device="cuda")
    launch_project([weight], [row_labels], [col_labels], [torch.ones(rows, device="cuda")], out)
    assert torch.equal(out[-3:, 0], torch.full((3,), float(cols), device="cuda"))
    assert int(out.count_nonzero()) == 3
