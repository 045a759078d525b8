"""Linear sum assignment against SciPy."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.optimize import linear_sum_assignment as scipy_assignment

from hetmerge.errors import BackendError, InputError
from hetmerge.ops import linear_sum_assignment

FIXED = settings(derandomize=True, deadline=None, database=None, max_examples=200)


@FIXED
@given(
    score=hnp.arrays(
        np.float32,
        hnp.array_shapes(min_dims=2, max_dims=4, min_side=1, max_side=6),
        elements=st.one_of(st.floats(-1, 1, width=32), st.integers(-2, 2).map(float)),
    ),
    maximize=st.booleans(),
)
def test_equals_scipy_batch_by_batch(score: np.ndarray, maximize: bool) -> None:
    rows, cols = linear_sum_assignment(torch.from_numpy(score), maximize)
    assert rows.shape == cols.shape == (*score.shape[:-2], min(score.shape[-2:]))
    assert rows.dtype == cols.dtype == torch.int64
    for index in np.ndindex(score.shape[:-2]):
        expected = scipy_assignment(score[index], maximize=maximize)
        assert rows[index].tolist() == expected[0].tolist()
        assert cols[index].tolist() == expected[1].tolist()


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


@pytest.mark.parametrize(
    ("score", "message"),
    [
        (torch.zeros(3), "shape"),
        (torch.tensor([[1.0, float("nan")]]), "NaN"),
        (torch.tensor([[1.0, float("-inf")]]), "infinite"),
        (torch.zeros(2, 2, dtype=torch.complex64), "complex64"),
    ],
)
def test_rejects(score: torch.Tensor, message: str) -> None:
    with pytest.raises(InputError, match=message):
        linear_sum_assignment(score)


def test_backend() -> None:
    with pytest.raises(BackendError, match="linear_sum_assignment has no 'native'"):
        linear_sum_assignment(torch.zeros(2, 2), backend="native")
