"""Linear sum assignment: as good as SciPy's optimum, with a proof."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment as scipy_assignment

from hetmerge import _native
from hetmerge.errors import BackendError, InputError
from hetmerge.ops import linear_sum_assignment, linear_sum_assignment_info
from hetmerge.ops.native import view

FIXED = settings(derandomize=True, deadline=None, database=None, max_examples=200)
# Prices are sums of at most 2 n scores: float64 rounds each addition by 1.1e-16 of the largest.
ROUNDING = 1e-13


@st.composite
def scores(draw: st.DrawFn, dims: int = 2) -> NDArray[Any]:
    """Real numbers, few different integers, constants, rows of very different magnitude."""
    shape = draw(hnp.array_shapes(min_dims=2, max_dims=dims, min_side=1, max_side=9))
    rng = np.random.default_rng(draw(st.integers(0, 2**31)))
    kind = draw(st.sampled_from(["normal", "integers", "constant", "magnitudes", "related"]))
    if kind == "integers":
        found = rng.integers(-2, 3, shape).astype(np.float64)
    elif kind == "constant":
        found = np.full(shape, float(rng.integers(-1, 2)))
    else:
        found = rng.standard_normal(shape)
    if kind == "magnitudes":
        found *= 10.0 ** rng.integers(-6, 7, (*shape[:-1], 1))
    if kind == "related":
        found[..., np.arange(min(shape[-2:])), rng.permutation(shape[-1])[: min(shape[-2:])]] += 5
    return found.astype(draw(st.sampled_from([np.float32, np.float64])))


def totals_agree(score: NDArray[Any], cols: list[int], rows: list[int], maximize: bool) -> None:
    wide = score.astype(np.float64)
    best = wide[scipy_assignment(wide, maximize=maximize)].sum()
    peak = max(1e-300, float(np.abs(wide).max())) * max(score.shape)
    assert abs(wide[rows, cols].sum() - best) <= ROUNDING * peak
    assert len(set(cols)) == len(set(rows)) == min(score.shape)
    assert rows == sorted(rows)


@FIXED
@given(score=scores(dims=4), maximize=st.booleans())
def test_as_good_as_scipy_batch_by_batch(score: NDArray[Any], maximize: bool) -> None:
    rows, cols = linear_sum_assignment(torch.from_numpy(score), maximize)
    assert rows.shape == cols.shape == (*score.shape[:-2], min(score.shape[-2:]))
    assert rows.dtype == cols.dtype == torch.int64
    for index in np.ndindex(score.shape[:-2]):
        totals_agree(score[index], cols[index].tolist(), rows[index].tolist(), maximize)


@FIXED
@given(score=scores(), maximize=st.booleans())
def test_the_steps_of_the_gpu(score: NDArray[Any], maximize: bool) -> None:
    """The CUDA kernel's source, compiled for one CPU thread."""
    wide = score if score.shape[0] <= score.shape[1] else np.ascontiguousarray(score.T)
    cols = _native.assign_by_team(view(torch.from_numpy(wide)), maximize)
    totals_agree(wide, cols, list(range(len(wide))), maximize)


@FIXED
@given(score=scores(dims=3), maximize=st.booleans())
def test_the_prices_prove_it(score: NDArray[Any], maximize: bool) -> None:
    found = linear_sum_assignment_info(torch.from_numpy(score), maximize)
    peak = max(1e-300, float(np.abs(score).max())) * max(score.shape)
    assert float(found.gap.abs().max()) <= ROUNDING * peak
    assert 0 <= float(found.violation.max()) <= ROUNDING * peak
    plain = linear_sum_assignment(torch.from_numpy(score), maximize)
    assert torch.equal(found.cols, plain[1])
    assert torch.equal(found.rows, plain[0])


def test_a_wrong_pairing_has_a_gap() -> None:
    """The certificate is worth something: prices of another problem do not prove this one."""
    score = torch.tensor([[3.0, 1.0], [2.0, 5.0]])
    found = linear_sum_assignment_info(score)
    assert float(found.total) == 8
    swapped = score[[0, 1], [1, 0]].sum()
    assert float(found.total - swapped) > 1
    assert int(found.scans) == 0  # each row has its own best column: nothing was searched


@pytest.mark.parametrize("shape", [(700, 700), (600, 900), (900, 600)])
@pytest.mark.parametrize("kind", ["independent", "ties", "related"])
def test_large(shape: tuple[int, int], kind: str) -> None:
    rng = np.random.default_rng(0)
    score = rng.standard_normal(shape).astype(np.float32)
    if kind == "ties":
        score = rng.integers(0, 4, shape).astype(np.float32)
    if kind == "related":
        score *= 0.1
        pairs = min(shape)
        score[rng.permutation(shape[0])[:pairs], rng.permutation(shape[1])[:pairs]] += 1
    rows, cols = linear_sum_assignment(score)
    totals_agree(score, cols.tolist(), rows.tolist(), True)


def test_any_strides_and_untouched_input() -> None:
    score = torch.randn(3, 8, 12, generator=torch.Generator().manual_seed(0))
    before = score.clone()
    for cut in (score[:, ::2, ::3], score.mT, score[0].T, score[1:2, :1].expand(1, 5, 12)):
        rows, cols = linear_sum_assignment(cut)
        again = linear_sum_assignment(cut.clone(memory_format=torch.contiguous_format))
        assert torch.equal(rows, again[0])
        assert torch.equal(cols, again[1])
    assert torch.equal(score, before)


def test_same_pairs_for_any_number_of_threads() -> None:
    score = torch.randn(40, 17, 20, generator=torch.Generator().manual_seed(0)).round(decimals=1)
    found = []
    for threads in (1, 2, 5):
        torch.set_num_threads(threads)
        found.append(linear_sum_assignment(score)[1])
    assert all(torch.equal(found[0], other) for other in found[1:])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64, torch.int32])
def test_finds_a_planted_permutation(dtype: torch.dtype) -> None:
    order = torch.randperm(40, generator=torch.Generator().manual_seed(0))
    score = torch.zeros(40, 40, dtype=dtype)
    score[torch.arange(40), order] = 1
    rows, cols = linear_sum_assignment(score)
    assert rows.tolist() == list(range(40))
    assert cols.tolist() == order.tolist()
    rows, cols = linear_sum_assignment(score.T)
    assert cols.tolist() == order.argsort().tolist()


def test_default_maximizes() -> None:
    score = np.array([[4, 1], [2, 0]])
    score.setflags(write=False)
    assert linear_sum_assignment(score)[1].tolist() == [0, 1]
    assert linear_sum_assignment(score, maximize=False)[1].tolist() == [1, 0]


@pytest.mark.parametrize("shape", [(0, 3), (3, 0), (0, 2, 2), (2, 0, 5)])
def test_empty(shape: tuple[int, ...]) -> None:
    rows, cols = linear_sum_assignment(torch.zeros(shape))
    assert rows.shape == cols.shape == (*shape[:-2], min(shape[-2:]))


@pytest.mark.parametrize("backend", ["native", "reference"])
@pytest.mark.parametrize(
    ("score", "message"),
    [
        (torch.zeros(3), "shape"),
        (torch.tensor([[1.0, float("nan")]]), "NaN"),
        (torch.tensor([[1.0, float("-inf")]]), "infinite"),
        (torch.tensor([[[1.0]], [[float("inf")]]]), "infinite"),
        (torch.zeros(2, 2, dtype=torch.complex64), "complex64"),
    ],
)
def test_rejects(score: torch.Tensor, message: str, backend: str) -> None:
    with pytest.raises(InputError, match=message):
        linear_sum_assignment(score, backend=backend)


def test_backends() -> None:
    score = torch.randn(6, 5, 7)
    for one, other in zip(
        linear_sum_assignment(score), linear_sum_assignment(score, backend="reference"), strict=True
    ):
        assert torch.equal(one, other)
    with pytest.raises(BackendError, match="linear_sum_assignment has no 'triton'"):
        linear_sum_assignment(score, backend="triton")
    with pytest.raises(BackendError, match="cannot run on 'cuda'"):
        linear_sum_assignment(score, backend="cuda")


def test_is_a_torch_operation() -> None:
    score = torch.randn(3, 4, 6)
    operation = torch.ops.hetmerge.linear_sum_assignment.default
    torch.library.opcheck(operation, (score, True, "auto"))
    compiled = torch.compile(linear_sum_assignment, fullgraph=True, backend="aot_eager")
    for found, wanted in zip(compiled(score), linear_sum_assignment(score), strict=True):
        assert torch.equal(found, wanted)


@pytest.mark.gpu
@pytest.mark.parametrize("shape", [(300, 64, 64), (100, 128, 256), (80, 256, 128), (64, 512, 512)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_cuda_is_as_good_as_native(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    score = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    score[::2] = score[::2].round(decimals=1)
    rows, cols = linear_sum_assignment(score.cuda(), backend="cuda")
    index = torch.arange(len(score))[:, None]
    found = score.double()[index, rows.cpu(), cols.cpu()].sum(1)
    torch.testing.assert_close(found, linear_sum_assignment_info(score).total, rtol=1e-12, atol=0)
    again = linear_sum_assignment(score.cuda(), backend="cuda")[1]
    assert torch.equal(again, cols)
