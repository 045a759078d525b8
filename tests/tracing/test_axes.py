"""The algebra of axes: products, concatenations, and what uniting them refines."""

from __future__ import annotations

import pytest

from hetmerge.tracing.axes import (
    Axis,
    Dim,
    Mismatch,
    atoms,
    concat,
    cut,
    extent,
    factors,
    find,
    pin,
    take,
    unite,
)


def sizes(dim: Dim) -> list[int]:
    return [axis.size for axis in atoms(dim)]


def test_a_view_splits_an_atom_and_remembers_it() -> None:
    hidden = (Axis(32),)
    heads, features = take(hidden, 4)
    assert (sizes(heads), sizes(features)) == ([4], [8])
    again, rest = take(hidden, 4)
    assert factors(again) == factors(heads)
    assert factors(rest) == factors(features)


def test_factors_of_size_one_vanish() -> None:
    assert [axis.size for axis in factors((Axis(1), Axis(3)))] == [3]
    assert factors((Axis(1),)) == []


def test_uniting_products_of_other_shape_splits_both() -> None:
    a, b = (Axis(4), Axis(6)), (Axis(2), Axis(12))
    unite(a, b)
    assert sizes(a) == sizes(b) == [2, 2, 6]
    assert list(atoms(a)) == list(atoms(b))


def test_sizes_that_do_not_divide_pin_both_sides() -> None:
    a, b = (Axis(4), Axis(9)), (Axis(6), Axis(6))
    unite(a, b)
    assert all(axis.pins for axis in [*atoms(a), *atoms(b)])


def test_sizes_that_differ_are_an_error() -> None:
    with pytest.raises(Mismatch, match="4 and 5"):
        unite((Axis(4),), (Axis(5),))


def test_cutting_twice_gives_three_parts_whatever_the_order() -> None:
    dim = (Axis(10),)
    cut(dim, 7)
    left, right = cut(dim, 3)
    assert (sizes(left), sizes(right)) == ([3], [4, 3])
    assert sizes(dim) == [3, 4, 3]


def test_concatenations_are_refined_to_common_boundaries() -> None:
    half = Axis(16)
    a, b = concat([(half,), (half,)]), concat([(Axis(10),), (Axis(22),)])
    unite(a, b)
    assert list(atoms(a)) == list(atoms(b))
    assert sizes(a) == [10, 6, 10, 6]  # the second half is the first again


def test_a_sum_of_products_shares_the_inner_factor() -> None:
    parts = concat([(Axis(8),), (Axis(4),)])
    outer, inner = take(parts, 3)
    assert sizes(inner) == [4]
    assert sizes(outer) == [2]  # 2 + 1: the single block cannot move
    assert extent(outer) == 3


def test_blocks_of_a_concatenation_keep_their_order() -> None:
    gate, up = Axis(5), Axis(3)
    outer, inner = take(concat([(gate,), (up,), (Axis(5),), (Axis(3),)]), 2)
    assert list(atoms(inner)) == [find(gate), find(up)]
    assert list(atoms(outer)) == []


def test_parts_that_straddle_blocks_do_not_fit() -> None:
    with pytest.raises(Mismatch):
        take(concat([(Axis(5),), (Axis(7),)]), 2)


def test_a_cut_inside_a_block_does_not_fit() -> None:
    with pytest.raises(Mismatch, match="inside a block"):
        cut((Axis(2), Axis(8)), 5)


def test_pins_follow_refinements_and_unions() -> None:
    a, b = (Axis(12),), (Axis(12),)
    pin(a, "why")
    take(b, 3)
    unite(a, b)
    assert all(list(axis.pins) == ["why"] for axis in atoms(b))
    left, _ = cut((Axis(6, "other"),), 2)
    assert list(next(atoms(left)).pins) == ["other"]
