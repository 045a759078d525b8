"""Resolved structure of one tensor dimension: which spaces it is built from."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class Leaf:
    """One ordering of ``size`` features.

    ``space`` indexes ``SpaceGraph.spaces``; -1 for an axis no parameter has (batch, positions).
    """

    space: int
    size: int


@dataclass(frozen=True)
class Product:
    """Row-major product, outer to inner; ``Product(())`` is the axis of size one."""

    parts: tuple[Expr, ...]


@dataclass(frozen=True)
class Concat:
    """Parts laid end to end."""

    parts: tuple[Expr, ...]


Expr = Leaf | Product | Concat


def size(expr: Expr) -> int:
    """Number of entries along the dimension."""
    if isinstance(expr, Leaf):
        return expr.size
    sizes = [size(part) for part in expr.parts]
    return math.prod(sizes) if isinstance(expr, Product) else sum(sizes)


def leaves(expr: Expr) -> Iterator[Leaf]:
    """Every leaf from left to right; an ordering used twice is yielded twice."""
    if isinstance(expr, Leaf):
        yield expr
        return
    for part in expr.parts:
        yield from leaves(part)


def located(expr: Expr, path: tuple[int, ...] = ()) -> Iterator[tuple[tuple[int, ...], Leaf]]:
    """Every leaf with the part indices that lead to it."""
    if isinstance(expr, Leaf):
        yield path, expr
        return
    for position, part in enumerate(expr.parts):
        yield from located(part, (*path, position))
