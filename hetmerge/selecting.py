"""A selection for one space: which features of the parents are kept, and how the rest are read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from hetmerge.ops.selection import select
from hetmerge.partition import Partition


def selection(
    covariance: Tensor,
    sizes: Mapping[int, int],
    importances: Mapping[int, Sequence[Tensor]],
    weights: Sequence[float],
    width: int,
) -> Partition:
    """Keep the features that best explain all of them where it matters.

    Args:
        covariance: [O, O] float64 of all parents' features, parent after parent.
        sizes: parent -> features; O is their sum.
        importances: parent -> per place that reads its features, [size, size]; each place counts
            the same, a parent counts by its weight.
        weights: of all parents; features of a parent of weight 0 are not kept.
        width: features to keep.

    """
    spans = _spans(sizes)
    importance = torch.zeros_like(covariance)
    for m, span in spans.items():
        block = covariance[span, span]
        for place in importances.get(m, ()):
            scale = float((place.to(block) * block).sum())
            if scale > 0:
                importance[span, span] += weights[m] / scale * place.to(block)
    heard = torch.cat([torch.full((n,), weights[m] > 0) for m, n in sizes.items()])
    heard = heard if bool(heard.any()) else ~heard
    at = heard.nonzero().flatten()
    found = select(covariance[at][:, at], importance[at][:, at], min(width, len(at)))
    return keep(covariance, sizes, at[found.features], found.live)


def keep(covariance: Tensor, sizes: Mapping[int, int], chosen: Tensor, live: int) -> Partition:
    """The map that keeps these features and reads the others off them by least squares.

    Args:
        covariance: [O, O] float64 of all parents' features, parent after parent.
        sizes: parent -> features; O is their sum.
        chosen: int64, the features that are kept.
        live: how many of them, from the first, the others are read off.
    """
    spans = _spans(sizes)
    labels = torch.full((len(covariance),), -1, dtype=torch.int64)
    order = chosen.sort().values
    labels[order] = torch.arange(len(order))
    readoff = _read_off(covariance, chosen[:live], labels, len(order))
    return Partition(
        len(order),
        {m: labels[span] for m, span in spans.items()},
        {m: readoff[span].contiguous() for m, span in spans.items()},
    )


def _read_off(covariance: Tensor, live: Tensor, labels: Tensor, width: int) -> Tensor:
    """[O, width] float64: a kept feature is itself, the others are regressed on the live ones."""
    matrix = torch.zeros(len(covariance), width, dtype=torch.float64)
    if len(live):
        known = covariance[live]
        matrix[:, labels[live]] = torch.linalg.solve(known[:, live], known).T
    kept = labels >= 0
    matrix[kept] = torch.eye(width, dtype=torch.float64)[labels[kept]]
    return matrix


def _spans(sizes: Mapping[int, int]) -> dict[int, slice]:
    spans, start = {}, 0
    for m, count in sizes.items():
        spans[m] = slice(start, start + count)
        start += count
    return spans
