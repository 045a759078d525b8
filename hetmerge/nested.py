"""Matching of axes with an inner structure: groups and heads, and the features inside them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from hetmerge.labelling import Labelling
from hetmerge.ops.assignment import linear_sum_assignment
from hetmerge.partition import Partition, owner, within
from hetmerge.setting import Setting
from hetmerge.tracing.expr import Concat, Expr, Leaf, Product
from hetmerge.tracing.graph import SpaceGraph
from hetmerge.tracing.spaces import Space


def outer_first(spaces: Sequence[Space]) -> list[Space]:
    """Spaces in an order in which those that others are nested in come first."""
    depth: dict[int, int] = {}

    def depth_of(space: Space) -> int:
        if space.index not in depth:
            depth[space.index] = 1 + max((depth_of(spaces[k]) for k in space.structure), default=0)
        return depth[space.index]

    return sorted(spaces, key=lambda space: (depth_of(space), space.index))


def nested(spaces: Sequence[Space], index: int) -> bool:
    """Part of an axis with an inner structure: heads, groups and what is inside them."""
    return bool(spaces[index].structure) or any(index in s.structure for s in spaces)


def nest_at(expr: Expr, path: Sequence[int], spaces: Sequence[Space]) -> tuple[int, int] | None:
    """(outer, inner) if what lies at `path` of a dimension stands in the units of one outer space,
    and may have another order in each."""
    outer: list[Expr] = []
    for i in path:
        assert isinstance(expr, (Product, Concat))
        if isinstance(expr, Product):
            if i == 0 and len(expr.parts) > 1:
                return None
            outer += [part for k, part in enumerate(expr.parts) if k != i]
        expr = expr.parts[i]
    if len(outer) != 1 or not (isinstance(outer[0], Leaf) and isinstance(expr, Leaf)):
        return None
    known = min(outer[0].space, expr.space) >= 0
    inside = known and outer[0].space in spaces[expr.space].structure
    return (outer[0].space, expr.space) if inside else None


def outer_similarity(similarity: Tensor, outer: Sequence[int], inner: Sequence[int]) -> Tensor:
    """How alike two outer units can be made: the mean correlation of their best inner matching.

    Args:
        similarity: [O, O] correlations of all parents' features, O = sum of outer * inner sizes.
        outer, inner: sizes per parent.

    Returns:
        [sum(outer), sum(outer)].
    """
    blocks = _blocks(outer, inner)
    found = torch.eye(len(blocks), dtype=similarity.dtype, device=similarity.device)
    pairs: dict[tuple[int, int], list[tuple[int, int]]] = {}  # of equal sizes: solved together
    for i, a in enumerate(blocks):
        for j, b in enumerate(blocks[:i]):
            pairs.setdefault((a.stop - a.start, b.stop - b.start), []).append((i, j))
    for same in pairs.values():
        scores = torch.stack([similarity[blocks[i], blocks[j]] for i, j in same])
        rows, cols = linear_sum_assignment(scores)
        each = torch.arange(len(same), device=scores.device)[:, None]
        means = scores[each, rows, cols].mean(1)
        i, j = torch.tensor(same, device=scores.device).T
        found[i, j] = found[j, i] = means
    return found


def apart(setting: Setting, outer: int, inner: int) -> bool:
    """The order of inner features may be another one in every outer unit, in all parents: each of
    their tensors says which unit an element belongs to, along the same dimension or one of rows."""
    links = [setting.links[m] for m in setting.members(inner)]
    return all(_says(link.parent.graph, link.spaces[outer], link.spaces[inner]) for link in links)


def _says(graph: SpaceGraph, outer: int, inner: int) -> bool:
    space = graph.spaces[inner]
    owners = [(o, owner(graph.tensors[o.tensor], o.dim, o.path, outer)) for o in space.where]
    return outer in space.structure and all(
        dim == o.dim or (dim is not None and (o.tensor, dim) not in graph.consumed)
        for o, dim in owners
    )


def match_inside(
    labelling: Labelling,
    name: str,
    similarity: Tensor,
    sizes: Mapping[int, int],
    outer: tuple[int, Partition],
    target: int,
    match: str,
) -> tuple[Partition, dict[int, Tensor]]:
    """Match inner features anew in every cluster of outer units.

    Args:
        name: of the inner space.
        match: how, as :meth:`Labelling.labels` takes it.
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
    for cluster in clusters[clusters >= 0].unique():
        here = (clusters == cluster).nonzero().flatten().tolist()
        at = torch.cat([torch.arange(blocks[i].start, blocks[i].stop) for i in here])
        own = [(owners[i], sizes[owners[i]]) for i in here]
        count, labels = labelling.labels(name, match, similarity[at][:, at], own, target)
        width = max(width, count)
        found.update(zip(here, labels, strict=True))
    inside = torch.arange(len(owners)).split([len(units.labels[m]) for m in sizes])
    stacked = {
        m: torch.stack([found.get(i, torch.zeros(sizes[m]).long()) for i in mine.tolist()])
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
