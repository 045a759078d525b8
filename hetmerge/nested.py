"""Matching of axes with an inner structure: groups and heads, and the features inside them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from hetmerge.labelling import Labelling
from hetmerge.ops.assignment import linear_sum_assignment
from hetmerge.partition import Partition, within
from hetmerge.setting import Setting
from hetmerge.tracing.expr import Concat, Expr, Leaf, Product
from hetmerge.tracing.graph import SpaceGraph
from hetmerge.tracing.spaces import Space


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


def apart(setting: Setting, outer: int, inner: int) -> bool:
    """Every parent says of each of its inner features which outer unit it stands in.

    Then the order inside may be another one in every unit.
    """
    links = [setting.links[m] for m in setting.members(inner)]
    return all(_leads(link.parent.graph, link.spaces[outer], link.spaces[inner]) for link in links)


def _leads(graph: SpaceGraph, outer: int, inner: int) -> bool:
    space = graph.spaces[inner]
    return outer in space.structure and all(
        _in_front(graph.tensors[o.tensor][o.dim], o.path, outer) for o in space.where
    )


def _in_front(expr: Expr, path: Sequence[int], outer: int) -> bool:
    """On the way to what lies at `path`, the outer space is an earlier part of a product."""
    for i in path:
        assert isinstance(expr, (Product, Concat))
        before = expr.parts[:i] if isinstance(expr, Product) else ()
        if any(isinstance(part, Leaf) and part.space == outer for part in before):
            return True
        expr = expr.parts[i]
    return False


def match_inside(
    labelling: Labelling,
    name: str,
    similarity: Tensor,
    sizes: Mapping[int, int],
    outer: tuple[int, Partition],
    target: int,
) -> tuple[Partition, dict[int, Tensor]]:
    """Match inner features anew in every cluster of outer units.

    Args:
        name: of the inner space.
        similarity: [O, O] correlations of all parents' features, O = sum of outer * inner sizes.
        sizes: parent -> inner features.
        outer: the outer space and its partition.
        target: inner features wanted in every cluster.

    Returns:
        The inner space's partition, and per parent int64 [outer * inner] clusters over all units.
    """
    space, units = outer
    owners = [m for m in sizes for _ in units.labels[m]]
    blocks = _blocks([len(units.labels[m]) for m in sizes], list(sizes.values()))
    clusters = torch.cat([units.labels[m] for m in sizes])
    found: dict[int, Tensor] = {}
    width = 0
    for cluster in clusters.unique():
        here = (clusters == cluster).nonzero().flatten().tolist()
        at = torch.cat([torch.arange(blocks[i].start, blocks[i].stop) for i in here])
        own = [(owners[i], sizes[owners[i]]) for i in here]
        count, labels = labelling.labels(
            name, labelling.options.match, similarity[at][:, at], own, target
        )
        width = max(width, count)
        found.update(zip(here, labels, strict=True))
    inside = torch.arange(len(owners)).split([len(units.labels[m]) for m in sizes])
    stacked = {
        m: torch.stack([found[i] for i in mine.tolist()])
        for m, mine in zip(sizes, inside, strict=True)
    }
    flat = {m: within(units.labels[m][:, None], x, width).flatten() for m, x in stacked.items()}
    return Partition(width, stacked, outer=space), flat


def _blocks(outer: Sequence[int], inner: Sequence[int]) -> list[slice]:
    blocks, start = [], 0
    for units, features in zip(outer, inner, strict=True):
        for _ in range(units):
            blocks.append(slice(start, start + features))
            start += features
    return blocks
