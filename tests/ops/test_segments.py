"""Depth alignment against exhaustive search."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from hetmerge.errors import InputError
from hetmerge.ops import align_depth, fixed_depth
from hetmerge.reference import segments as reference

FIXED = settings(derandomize=True, deadline=None, database=None, max_examples=300)
MODES = [("layer", "end"), ("segment", "end"), ("segment", "start")]


@st.composite
def tables(draw: st.DrawFn) -> NDArray[np.float64]:
    deep = draw(st.integers(1, 9))
    shallow = draw(st.integers(1, deep))
    # Multiples of 1/8 add up without rounding, so that ties are ties in any order of summation.
    eighths = st.integers(-8, 8) if draw(st.booleans()) else st.integers(0, 2)
    return draw(hnp.arrays(np.float64, (deep, shallow), elements=eighths.map(lambda k: k / 8)))


@pytest.mark.parametrize(("objective", "anchor"), MODES)
@FIXED
@given(table=tables())
def test_optimal_with_the_earliest_starts(
    objective: str, anchor: str, table: NDArray[np.float64]
) -> None:
    starts = align_depth(table, objective, anchor)
    assert starts == reference.align_depth(table, objective, anchor)
    assert all(type(start) is int for start in starts)


def test_the_three_readings_differ() -> None:
    table = np.array([[0, 0], [9, 8], [0, 1], [0, 6]])
    assert align_depth(table, "layer") == [0, 2]
    assert align_depth(table, "segment", "end") == [0, 2]
    assert align_depth(table, "segment", "start") == [0, 1]
    early = np.array([[9, 0], [0, 0], [0, 5], [0, 1]])
    assert align_depth(early, "segment", "end") == [0, 1]
    assert align_depth(early, "segment", "start") == [0, 2]


@pytest.mark.parametrize(("objective", "anchor"), MODES)
def test_finds_planted_layers(objective: str, anchor: str) -> None:
    lengths = [1, 3, 2, 1, 4]
    owner = np.repeat(np.arange(5), lengths)
    table = np.where(owner[:, None] == np.arange(5), 0.9, 0.1)
    found = align_depth(torch.from_numpy(table).bfloat16(), objective, anchor)
    planted = [0, 1, 4, 6, 7]
    if objective == "layer":
        assert found == planted
    else:  # one layer per segment counts, so segments may be cut anywhere it stays the same
        ends = [*[start - 1 for start in found[1:]], 10]
        counted = ends if anchor == "end" else found
        assert owner[counted].tolist() == list(range(5))


@pytest.mark.parametrize(("objective", "anchor"), MODES)
def test_equal_depth_is_the_identity(objective: str, anchor: str) -> None:
    table = np.random.default_rng(0).standard_normal((7, 7))
    assert align_depth(table, objective, anchor) == list(range(7))
    assert align_depth(table[:, :1], objective, anchor) == [0]


def test_fixed_positions() -> None:
    assert fixed_depth(8, 4, "uniform") == [0, 2, 4, 6]
    assert fixed_depth(7, 3, "uniform") == [0, 2, 4]
    assert fixed_depth(8, 3, "head") == [0, 1, 2]
    assert fixed_depth(8, 3, "tail") == [0, 6, 7]
    for kind in ("uniform", "head", "tail"):
        assert fixed_depth(5, 5, kind) == list(range(5))
        assert fixed_depth(5, 1, kind) == [0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((np.ones((2, 3)),), "more shallow layers"),
        ((np.ones((0, 0)),), "empty"),
        ((np.ones((3, 0)),), "empty"),
        ((np.ones(3),), "deep, shallow"),
        ((np.full((3, 2), np.nan),), "NaN"),
        ((torch.tensor([[1.0], [float("inf")]]),), "NaN or infinite"),
        ((np.ones((3, 2)), "both"), "objective: 'both'"),
        ((np.ones((3, 2)), "layer", "middle"), "anchor: 'middle'"),
    ],
)
def test_rejects(arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(InputError, match=message):
        align_depth(*arguments)


@pytest.mark.parametrize(("deep", "shallow", "kind"), [(3, 4, "head"), (3, 0, "head"), (3, 2, "x")])
def test_fixed_rejects(deep: int, shallow: int, kind: str) -> None:
    with pytest.raises(InputError):
        fixed_depth(deep, shallow, kind)


@pytest.mark.parametrize(("objective", "anchor"), MODES)
def test_registered_with_torch(objective: str, anchor: str) -> None:
    table = torch.rand(6, 3, generator=torch.Generator().manual_seed(0)).bfloat16()
    operator = torch.ops.hetmerge.align_depth.default
    torch.library.opcheck(operator, (table, objective, anchor))
    compiled = torch.compile(
        lambda x: operator(2 * x, objective, anchor), fullgraph=True, backend="aot_eager"
    )
    assert compiled(table).tolist() == align_depth(2 * table, objective, anchor)
