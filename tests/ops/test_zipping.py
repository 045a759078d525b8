"""Elastic zip against the step-by-step reference."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from numpy.typing import NDArray
from zipping_cases import FIXED, correlations, problems, symmetric

from hetmerge import _native
from hetmerge.errors import BackendError, InputError
from hetmerge.ops import zip_match, zip_match_info
from hetmerge.ops.native import view
from hetmerge.reference import zipping as reference


def check(
    matrix: NDArray[Any], sizes: list[int], width: int, alpha: float, beta: float
) -> reference.Zip:
    expected = reference.zip_match(matrix, sizes, width, alpha, beta)
    result = zip_match_info(matrix, sizes, width, alpha, beta, backend="native")
    assert result.labels.tolist() == expected.labels.tolist()
    assert result.heights.tolist() == expected.heights.tolist()
    assert result.relaxed == expected.relaxed
    in_place = zip_match_info(matrix.copy(), sizes, width, alpha, beta, "native", overwrite=True)
    assert in_place.labels.tolist() == expected.labels.tolist()
    assert in_place.heights.tolist() == expected.heights.tolist()
    return expected


@FIXED
@given(problems())
def test_equals_the_reference_bit_for_bit(problem: Any) -> None:
    expected = check(*problem)
    _, sizes, width, _, _ = problem
    assert sorted(set(expected.labels.tolist())) == list(range(width))
    assert len(expected.heights) == sum(sizes) - width


def native(
    matrix: NDArray[Any], sizes: list[int], budgets: list[int], width: int, alpha: float, **options
) -> tuple[Any, ...]:
    given = view(torch.from_numpy(matrix))
    return _native.zip([given], [sizes], [budgets], [width], alpha, **options)[0]


@FIXED
@given(problems())
def test_every_hand_over_gives_the_same_labels(problem: Any) -> None:
    matrix, sizes, width, alpha, beta = problem
    removed = len(matrix) - width
    budgets = [math.floor(removed * d // len(matrix) * beta + 1e-4) for d in sizes]
    outcomes = [
        native(matrix.copy(), sizes, budgets, width, alpha, overwrite=True, rescan_limit=limit)
        for limit in (0, 1, 7, 10**6)
    ]
    for labels, heights, relaxed, _, _ in outcomes[:-1]:
        assert labels.tolist() == outcomes[-1][0].tolist()
        assert heights.tolist() == outcomes[-1][1].tolist()
        assert relaxed == outcomes[-1][2]


def test_chains_keep_ties_in_order() -> None:
    rng = np.random.default_rng(0)
    for _ in range(4000):
        total = int(rng.integers(6, 24))
        matrix = symmetric(rng.integers(0, 5, (total, total)) / 4).astype(np.float32)
        width, budget = int(rng.integers(1, total)), int(rng.integers(1, total))
        arguments = (matrix, [total // 2, total - total // 2], [budget] * 2, width, 1.0)
        chained = native(*arguments, rescan_limit=0)
        cached = native(*arguments, rescan_limit=10**6)
        assert chained[0].tolist() == cached[0].tolist()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("sizes", [[80, 70], [60, 20, 60], [100, 0, 31], [130]])
def test_correlations_of_unequal_parents(sizes: list[int], dtype: Any) -> None:
    matrix = correlations(np.random.default_rng(0), sizes, dtype)
    for alpha in (0.3, 0.5, 1.0):
        for beta in (0.0, 0.125, 1.0):
            check(matrix, sizes, 65, alpha, beta)


@pytest.mark.parametrize("seed", range(20))
def test_ties_among_negatives(seed: int) -> None:
    """A factor below 1 raises negatives, so a merged pair can tie with the best of a row."""
    rng = np.random.default_rng(seed)
    matrix = symmetric(-np.exp2(rng.integers(-3, 1, (24, 24)))).astype(np.float32)
    check(matrix, [12, 12], 4, 0.5, 9.0)
    check(matrix, [12, 12], 12, 0.5, 0.5)


def star(total: int) -> NDArray[np.float32]:
    """Every row has its best in the column merged away next, so every cached best goes stale."""
    column = np.linspace(0.1, 1.0, total, dtype=np.float32)
    return symmetric(np.broadcast_to(column, (total, total)))


@pytest.mark.parametrize(("alpha", "beta"), [(1.0, 1.0), (0.5, 1.0), (0.5, 0.3), (1.0, 0.0)])
@pytest.mark.parametrize("shift", [0.0, 0.4])  # 0.4: positive pairs run out
def test_star_switches_to_chains(alpha: float, beta: float, shift: float) -> None:
    matrix, sizes = symmetric(star(240) - np.float32(shift)), [120, 120]
    check(matrix, sizes, 60, alpha, beta)
    result = zip_match_info(matrix, sizes, 60, alpha, beta)
    assert result.algorithm == "row-best+chain"
    assert result.rescans >= 32 * len(matrix)


def test_ordinary_correlations_need_few_rescans() -> None:
    matrix = correlations(np.random.default_rng(1), [200, 200], np.float32)
    result = zip_match_info(matrix, [200, 200])
    assert result.algorithm == "row-best"
    assert result.rescans < 4 * len(result.heights)


def test_partners_find_each_other() -> None:
    order = np.random.default_rng(2).permutation(50)
    matrix = np.zeros((100, 100))
    matrix[np.arange(50), 50 + order] = matrix[50 + order, np.arange(50)] = 0.9
    labels = zip_match(torch.from_numpy(matrix), [50, 50])
    assert labels.dtype == torch.int64
    assert labels[:50].tolist() == list(range(50))
    assert labels[50:][order].tolist() == list(range(50))


def test_budget_counts_merges_within_a_model() -> None:
    # Model 0 is all alike; one within-model merge is always allowed, the rest must cross.
    matrix = np.full((6, 6), 0.1)
    matrix[:3, :3] = 0.9
    free = zip_match(matrix, [3, 3], alpha=1.0, beta=9.0)
    tight = zip_match(matrix, [3, 3], alpha=1.0, beta=0.0)
    assert free.tolist() == [0, 0, 0, 0, 1, 2]
    assert tight.tolist() == [0, 0, 1, 0, 0, 2]


def test_budget_is_rounded_down_twice() -> None:
    # 7 merges, 3.5 of them model 0's: floor(3 * 0.9) = 2, where floor(3.5 * 0.9) would be 3.
    matrix = np.full((10, 10), 0.1)
    matrix[:5, :5] = 0.9
    check(matrix, [5, 5], 3, 1.0, 0.9)
    assert zip_match_info(matrix, [5, 5], 3, 1.0, 0.9).heights[:3].tolist() == [0.9, 0.9, 0.1]


def test_no_feature_is_lost_when_budgets_run_out() -> None:
    matrix = correlations(np.random.default_rng(3), [16, 16, 16], np.float32)
    result = zip_match_info(matrix, [16, 16, 16], 4, beta=0.0)
    assert result.relaxed
    assert set(result.labels.tolist()) == set(range(4))
    assert not zip_match_info(matrix, [16, 16, 16], beta=9.0).relaxed
    check(matrix, [16, 16, 16], 4, 0.5, 0.0)


@pytest.mark.parametrize("backend", ["native", "reference"])
def test_callers_matrix_is_left_alone(backend: str) -> None:
    matrix = torch.from_numpy(correlations(np.random.default_rng(4), [9, 7], np.float64))
    before = matrix.clone()
    zip_match(matrix, [9, 7], 3, backend=backend)
    assert torch.equal(matrix, before)


def test_strided_and_readonly_inputs() -> None:
    matrix = correlations(np.random.default_rng(5), [9, 7], np.float32)
    expected = zip_match(matrix, [9, 7]).tolist()
    wide = np.zeros((32, 48), np.float32)
    wide[::2, ::3] = matrix
    assert zip_match(wide[::2, ::3], [9, 7]).tolist() == expected
    assert zip_match(torch.from_numpy(matrix).T, [9, 7]).tolist() == expected
    matrix.setflags(write=False)
    assert zip_match(matrix, [9, 7]).tolist() == expected


@pytest.mark.parametrize("backend", ["native", "reference"])
def test_rounding_below_the_diagonal_does_not_count(backend: str) -> None:
    rng = np.random.default_rng(6)
    ties = symmetric(rng.integers(1, 3, (30, 30)).astype(np.float32))
    expected = zip_match(ties, [16, 14], 5, backend=backend).tolist()
    below = np.tril(rng.uniform(-2e-6, 2e-6, (30, 30)), -1).astype(np.float32)
    assert (ties + below != ties).any()
    assert zip_match(ties + below, [16, 14], 5, backend=backend).tolist() == expected
    assert zip_match((ties + below).T, [16, 14], 5, backend=backend).tolist() != expected


@pytest.mark.parametrize("sizes", [[1], [1, 1], [0, 1], [5]])
def test_nothing_to_merge(sizes: list[int]) -> None:
    total = sum(sizes)
    result = zip_match_info(np.ones((total, total), np.float32), sizes, total)
    assert result.labels.tolist() == list(range(total))
    assert len(result.heights) == 0


@pytest.mark.parametrize("backend", ["native", "reference"])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sizes": [2, 3]}, "similarity: shape"),
        ({"sizes": []}, "sizes"),
        ({"sizes": [5, -1]}, "sizes"),
        ({"sizes": [2.5, 1.5]}, "sizes"),
        ({"width": 0}, "width: 0"),
        ({"width": 5}, "width: 5"),
        ({"width": 2.0}, "width"),
        ({"alpha": 0.0}, "alpha"),
        ({"alpha": -1.0}, "alpha"),
        ({"alpha": 1e-60}, "alpha"),
        ({"alpha": math.nan}, "alpha"),
        ({"beta": -0.1}, "beta"),
        ({"beta": math.inf}, "beta"),
        ({"similarity": np.zeros((4, 5), np.float32)}, "similarity: shape"),
        ({"similarity": np.zeros((4, 4), np.int64)}, "similarity: dtype"),
        ({"similarity": torch.zeros(4, 4, dtype=torch.bfloat16)}, "similarity: dtype"),
        ({"similarity": np.triu(np.ones((4, 4), np.float32))}, "transpose"),
        ({"similarity": np.full((4, 4), np.nan)}, "NaN"),
        ({"similarity": np.diag([np.inf, 1, 1, 1])}, "NaN"),
    ],
)
def test_rejects(change: dict[str, Any], message: str, backend: str) -> None:
    arguments = {"similarity": np.ones((4, 4), np.float32), "sizes": [2, 2], **change}
    with pytest.raises(InputError, match=message):
        zip_match(**arguments, backend=backend)


@pytest.mark.parametrize("place", [(0, 199), (70, 71), (199, 0), (128, 128)])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_every_entry_is_inspected(place: tuple[int, int], bad: float) -> None:
    matrix = np.zeros((200, 200), np.float32)
    matrix[place] = bad
    with pytest.raises(InputError, match="NaN"):
        zip_match(matrix, [100, 100])
    if place[0] != place[1]:
        matrix[place] = 0.5
        with pytest.raises(InputError, match="transpose"):
            zip_match(matrix, [100, 100])


def test_backends(monkeypatch: pytest.MonkeyPatch) -> None:
    matrix = np.ones((4, 4), np.float32)
    assert zip_match_info(matrix, [2, 2], backend="reference").algorithm == "reference"
    monkeypatch.setenv("HETMERGE_BACKEND", "reference")
    assert zip_match_info(matrix, [2, 2]).algorithm == "reference"
    assert zip_match_info(matrix, [2, 2], backend="native").algorithm == "row-best"
    with pytest.raises(BackendError, match="triton"):
        zip_match(matrix, [2, 2], backend="triton")
    monkeypatch.setenv("HETMERGE_BACKEND", "abacus")
    with pytest.raises(BackendError, match="HETMERGE_BACKEND: 'abacus'"):
        zip_match(matrix, [2, 2])


def test_overwrite_needs_a_plain_writable_matrix() -> None:
    matrix = correlations(np.random.default_rng(0), [4, 4], np.float32)
    with pytest.raises(InputError, match="overwrite needs a contiguous matrix"):
        zip_match(torch.from_numpy(matrix).repeat(2, 2)[::2, ::2], [4, 4], overwrite=True)
    matrix.setflags(write=False)
    with pytest.raises(InputError, match="overwrite needs a contiguous and writable array"):
        zip_match(matrix, [4, 4], overwrite=True)


def test_is_a_torch_operation() -> None:
    matrix = torch.from_numpy(correlations(np.random.default_rng(0), [5, 4], np.float32))
    arguments = ([matrix], [5, 4], [2], [5], 0.5, 1.0, "auto")
    torch.library.opcheck(torch.ops.hetmerge.zip.default, arguments)
    torch.library.opcheck(torch.ops.hetmerge.zip_.default, ([matrix.clone()], *arguments[1:]))
    compiled = torch.compile(
        lambda x: zip_match(x, [5, 4]) + 1, fullgraph=True, backend="aot_eager"
    )
    assert torch.equal(compiled(matrix), zip_match(matrix, [5, 4]) + 1)


@pytest.mark.gpu  # for its memory: machines without a GPU seldom have 20 GB to spare
@pytest.mark.slow
def test_index_products_beyond_32_bits() -> None:
    total = 46_400
    matrix = np.zeros((total, total), np.float32)
    for i, j, value in ((total - 10, total - 1, 0.9), (3, total - 2, 0.8)):
        matrix[i, j] = matrix[j, i] = value
    found = zip_match_info(matrix, [total // 2, total // 2], total - 2, overwrite=True)
    np.testing.assert_allclose(found.heights, [0.9, 0.8], rtol=1e-6)
    assert found.labels[total - 10] == found.labels[total - 1]
    assert found.labels[3] == found.labels[total - 2]
