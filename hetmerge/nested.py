"""Matching of axes with an inner structure: groups and heads, and the features inside them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from hetmerge.ops.assignment import linear_sum_assignment
from hetmerge.tracing.expr import Expr, Leaf, Product
from hetmerge.tracing.spaces import Space


def outer_first(spaces: Sequence[Space]) -> list[Space]:
    """Spaces in an order in which those that others are nested in come first."""
    depth: dict[int, int] = {}

    def depth_of(space: Space) -> int:
        if space.index not in depth:
            depth[space.index] = 1 + max((depth_of(spaces[k]) for k in space.structure), default=0)
        return depth[space.index]

    return sorted(spaces, key=lambda space: (depth_of(space), space.index))


def nest_of(expr: Expr, spaces: Sequence[Space]) -> tuple[int, int] | None:
    """(outer, inner) if an axis is the product of a free outer space and a space nested in it."""
    if not isinstance(expr, Product) or len(expr.parts) != 2:
        return None
    outer, inner = expr.parts
    if not (isinstance(outer, Leaf) and isinstance(inner, Leaf)):
        return None
    if min(outer.space, inner.space) < 0 or outer.space not in spaces[inner.space].structure:
        return None
    return (outer.space, inner.space) if spaces[outer.space].free else None


def outer_similarity(similarity: Tensor, outer: Sequence[int], inner: Sequence[int]) -> Tensor:
    """How alike two outer units can be made: the mean correlation of their best inner matching.

    Args:
        similarity: [O, O] correlations of all parents' features, O = sum of outer * inner sizes.
        outer, inner: sizes per parent.

    Returns:
        [sum(outer), sum(outer)].
    """
    blocks = _blocks(outer, inner)
    found = torch.eye(len(blocks), dtype=similarity.dtype)
    for i, a in enumerate(blocks):
        for j, b in enumerate(blocks[:i]):
            score = similarity[a, b]
            rows, cols = linear_sum_assignment(score)
            found[i, j] = found[j, i] = score[rows, cols].mean()
    return found


def inner_similarity(
    similarity: Tensor, outer: Sequence[int], inner: Sequence[int], labels: Tensor
) -> Tensor:
    """Correlation of inner features over the outer units that were matched.

    Args:
        labels: [sum(outer)] cluster of every outer unit, parent after parent.

    Returns:
        [sum(inner), sum(inner)], the mean over pairs of outer units in one cluster.
    """
    blocks = _blocks(outer, inner)
    starts = [0, *torch.tensor(list(inner)).cumsum(0).tolist()]
    parent = torch.repeat_interleave(torch.arange(len(outer)), torch.tensor(list(outer))).tolist()
    total = similarity.new_zeros(starts[-1], starts[-1])
    count = torch.zeros_like(total)
    for i, a in enumerate(blocks):
        for j, b in enumerate(blocks):
            if labels[i] == labels[j] and (i == j or parent[i] != parent[j]):
                rows = slice(starts[parent[i]], starts[parent[i] + 1])
                cols = slice(starts[parent[j]], starts[parent[j] + 1])
                total[rows, cols] += similarity[a, b]
                count[rows, cols] += 1
    return total / count.clamp_min(1)


def _blocks(outer: Sequence[int], inner: Sequence[int]) -> list[slice]:
    blocks, start = [], 0
    for units, features in zip(outer, inner, strict=True):
        for _ in range(units):
            blocks.append(slice(start, start + features))
            start += features
    return blocks
