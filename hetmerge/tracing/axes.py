"""Axis algebra: type inference where the types are orderings of features.

An *axis* is a union-find node of a fixed size: an atom (an ordering nothing is known about), a
row-major product of smaller axes, or a concatenation of smaller axes. A tensor dimension (`Dim`)
is a product of axes; the empty product has size one. Binding an atom to a body, uniting two axes
and pinning an atom all shrink the set of permutations that are allowed, so doing too much of any
of them is sound; and every step makes sizes smaller, so it ends.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple


class Mismatch(Exception):
    """Two structures have no common refinement that this algebra can express."""


class Times(NamedTuple):
    """Row-major product, outer to inner."""

    parts: list[Axis]


class Plus(NamedTuple):
    """Concatenation."""

    parts: list[Axis]


class Axis:
    """Union-find node; read it through `find`."""

    __slots__ = ("body", "follows", "groups", "pins", "serial", "size")
    _serial = itertools.count()

    def __init__(self, size: int, pin: str | None = None) -> None:
        self.size = size
        self.follows: Axis | None = None
        self.body: Times | Plus | None = None
        self.pins: dict[str, None] = {} if pin is None else {pin: None}
        # routed tokens: (axis, grouping) whose index every entry of this axis carries
        self.groups: set[tuple[Axis, int]] = set()
        self.serial = next(self._serial)

    def __repr__(self) -> str:
        node = find(self)
        if node.body is None:
            return f"{'!' if node.pins else ''}a{node.serial}:{node.size}"
        sign = "*" if isinstance(node.body, Times) else "+"
        return "(" + sign.join(map(repr, node.body.parts)) + ")"


Dim = tuple[Axis, ...]


def find(axis: Axis) -> Axis:
    """The representative of an axis."""
    while axis.follows is not None:
        if axis.follows.follows is not None:
            axis.follows = axis.follows.follows
        axis = axis.follows
    return axis


def extent(dim: Iterable[Axis]) -> int:
    """Number of entries of a dimension."""
    return math.prod(axis.size for axis in dim)


def factors(dim: Iterable[Axis]) -> list[Axis]:
    """Atoms and concatenations whose product is the dimension; factors of size one vanish."""
    found: list[Axis] = []
    for axis in map(find, dim):
        if axis.size == 1:
            continue
        if isinstance(axis.body, Times):
            found += factors(axis.body.parts)
        else:
            found.append(axis)
    return found


def atoms(dim: Iterable[Axis]) -> Iterator[Axis]:
    """Every atom at any depth, with repeats."""
    for axis in map(find, dim):
        if axis.body is not None:
            yield from atoms(axis.body.parts)
        elif axis.size > 1:
            yield axis


def pin(dim: Iterable[Axis], reason: str) -> None:
    """Forbid every permutation of the dimension."""
    for atom in atoms(dim):
        atom.pins[reason] = None


def merged(dim: Iterable[Axis]) -> Axis:
    """The dimension as a single axis."""
    parts = factors(dim)
    if len(parts) == 1:
        return parts[0]
    axis = Axis(extent(parts))
    if parts:
        axis.body = Times(parts)
    return axis


def concat(dims: Sequence[Iterable[Axis]]) -> Dim:
    """Dimensions laid end to end, as one dimension."""
    parts: list[Axis] = []
    for dim in dims:
        axis = merged(dim)
        parts += axis.body.parts if isinstance(axis.body, Plus) else [axis]
    if len(parts) == 1:
        return tuple(factors(parts))
    whole = Axis(sum(part.size for part in parts))
    whole.body = Plus(parts)
    return (whole,)


def take(dim: Iterable[Axis], size: int) -> tuple[Dim, Dim]:
    """Split a product into outermost factors of total ``size`` and the rest."""
    taken: list[Axis] = []
    rest = factors(dim)
    while size > 1:
        if not rest:
            raise Mismatch(f"no outer factor of size {size}")
        head, rest = rest[0], factors(rest[1:])
        if size % head.size == 0:
            taken.append(head)
            size //= head.size
        elif head.size % size == 0:
            outer, inner = _factor(head, size)
            taken.append(outer)
            rest = factors([inner, *rest])
            size = 1
        else:
            raise Mismatch(f"sizes {size} and {head.size} do not divide")
    return tuple(factors(taken)), tuple(rest)


def cut(dim: Iterable[Axis], at: int) -> tuple[Dim, Dim]:
    """Split a dimension at position ``at``, strictly inside it."""
    parts = factors(dim)
    head, inner = parts[0], tuple(parts[1:])
    step = extent(inner)
    if step > 1:
        if at % step:
            raise Mismatch(f"position {at} is inside a block of {step}")
        left, right = cut([head], at // step)
        return (*left, *inner), (*right, *inner)
    if head.body is None:
        before, after = Axis(at), Axis(head.size - at)
        _bind(head, Plus([before, after]))
        return tuple(factors([before])), tuple(factors([after]))
    left_parts, right_parts = _cut_parts(head.body.parts, at)
    head.body = Plus(left_parts + right_parts)
    return concat([[part] for part in left_parts]), concat([[part] for part in right_parts])


def unite(first: Iterable[Axis], second: Iterable[Axis]) -> None:
    """Make two dimensions share one ordering; where they cannot, pin both."""
    first, second = tuple(first), tuple(second)
    if extent(first) != extent(second):
        raise Mismatch(f"sizes {extent(first)} and {extent(second)} differ")
    try:
        _align(first, second)
    except Mismatch as error:
        pin(first, f"incompatible structure: {error}")
        pin(second, f"incompatible structure: {error}")


def _align(first: Dim, second: Dim) -> None:
    left, right = factors(first), factors(second)
    while left and right:
        # earlier steps may have turned a later factor into a product
        left, right = factors(left), factors(right)
        a, b = left[0], right[0]
        if a.size == b.size:
            left, right = left[1:], right[1:]
            if a is not b:
                _join(a, b)
        elif a.size % b.size == 0:
            left = [*_factor(a, b.size), *left[1:]]
        elif b.size % a.size == 0:
            right = [*_factor(b, a.size), *right[1:]]
        else:
            raise Mismatch(f"factors {a.size} and {b.size} do not divide")


def _join(a: Axis, b: Axis) -> None:
    if a.body is not None and b.body is None:
        a, b = b, a
    if a.body is None:
        a.follows = b
        b.groups |= a.groups
        for reason in a.pins:
            pin([b], reason)
        return
    for end in _ends(b):
        _cut_inside(a, end)
    for end in _ends(a):
        _cut_inside(b, end)
    assert a.body is not None
    assert b.body is not None
    pairs = list(zip(a.body.parts, b.body.parts, strict=False))
    if len(a.body.parts) != len(b.body.parts) or any(p.size != q.size for p, q in pairs):
        raise Mismatch(f"concatenations of {a.size} have different boundaries")
    for p, q in pairs:
        _align((p,), (q,))


def _ends(axis: Axis) -> list[int]:
    assert axis.body is not None
    return list(itertools.accumulate(part.size for part in axis.body.parts))


def _cut_inside(axis: Axis, at: int) -> None:
    if 0 < at < axis.size:
        cut([axis], at)


def _bind(atom: Axis, body: Times | Plus) -> None:
    assert atom.body is None
    atom.body = body
    for reason in atom.pins:
        pin(body.parts, reason)


def _cut_parts(parts: list[Axis], at: int) -> tuple[list[Axis], list[Axis]]:
    left: list[Axis] = []
    right: list[Axis] = []
    position = 0
    for part in map(find, list(parts)):
        if position + part.size <= at:
            left.append(part)
        elif position >= at:
            right.append(part)
        else:
            before, after = cut([part], at - position)
            left.append(merged(before))
            right.append(merged(after))
        position += part.size
    return left, right


def _factor(axis: Axis, outer: int) -> list[Axis]:
    """Refine an atom or a concatenation to a product whose outer axis has the given size."""
    inner = axis.size // outer
    if axis.body is None:
        parts = [Axis(outer), Axis(inner)]
        _bind(axis, Times(parts))
        return parts
    return _factor_concat(axis, axis.body.parts, outer, inner)


def _factor_concat(axis: Axis, parts: list[Axis], outer: int, inner: int) -> list[Axis]:
    # a + b + ... = (a' + b' + ...) * inner, where a = a' * inner and so on
    blocks = _blocks(parts, inner)
    common = Axis(inner)
    heads: list[Axis] = []
    for block in blocks:
        length = sum(part.size for part in block)
        if length > inner and len(block) > 1:
            raise Mismatch(f"parts of {axis.size} do not fall into blocks of {inner}")
        head = Axis(length // inner)
        _align(concat([[part] for part in block]), (head, common))
        heads.append(head)
    # heads of size one stay in the sum: it has no atoms, so the order of the blocks is fixed
    whole = Axis(outer)
    whole.body = Plus(heads)
    axis.body = Times([whole, common])
    return [whole, common]


def _blocks(parts: list[Axis], inner: int) -> list[list[Axis]]:
    """Group neighbouring parts so that every group is a whole number of inner blocks."""
    blocks: list[list[Axis]] = [[]]
    length = 0
    for part in map(find, parts):
        blocks[-1].append(part)
        length += part.size
        if length % inner == 0:
            blocks.append([])
            length = 0
    blocks.pop()
    return blocks
