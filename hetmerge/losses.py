"""What a space loses by being merged into fewer features, as the next layers see it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from hetmerge.partition import Partition

RIDGE = 1e-6  # of the correlations of merged features, which may be copies of one another


def shares_lost(
    covariance: Tensor,
    importance: Tensor,
    partitions: Sequence[Partition],
    weights: Sequence[float],
) -> Tensor:
    """Share of the weighted variance of the parents' features that merging loses.

    Lost is what no linear read-off of the merged features has, so what even refit cannot restore.

    With C the covariance, Q the importance and M the merge matrix of a partition,

        E = C - C M' (M C M')^-1 M C,    tr(Q E) = tr(Q C) - tr((M C M')^-1 M C Q C M')

    of tr(Q C): the loss of :func:`hetmerge.ops.select`, for any partition. Union loses nothing.

    Args:
        covariance: [O, O] float64 of all parents' features, parent after parent.
        importance: [O, O] float64, how errors in them count.
        partitions: of this one space.
        weights: of all parents.

    Returns:
        [partitions] float64 in [0, 1].
    """
    whole = (importance * covariance).sum()
    seen = covariance @ importance @ covariance
    found = []
    for partition in partitions:
        if partition.union or whole <= 0:
            found.append(torch.zeros_like(whole))
            continue
        merge = _merge_matrix(partition, weights).to(covariance)
        own, read = merge @ covariance @ merge.T, merge @ seen @ merge.T
        scale = own.diagonal().clamp_min(0).rsqrt()
        scale = scale.masked_fill(~scale.isfinite(), 0.0)
        own, read = (x * scale[:, None] * scale for x in (own, read))
        own.diagonal().add_(RIDGE).masked_fill_(scale == 0, 1.0)
        explained = torch.cholesky_solve(read, torch.linalg.cholesky(own)).diagonal().sum()
        found.append(((whole - explained) / whole).clamp(0, 1))
    return torch.stack(found)


def _merge_matrix(partition: Partition, weights: Sequence[float]) -> Tensor:
    """M [width, O] float64: every merged feature the weighted mean of its members, or a sum."""
    if partition.writes:
        return torch.cat(list(partition.writes.values())).T
    labels = torch.cat(list(partition.labels.values()))
    counts = [len(found) for found in partition.labels.values()]
    weight = torch.tensor([weights[m] for m in partition.labels], dtype=torch.float64)
    weight = weight.repeat_interleave(torch.tensor(counts))
    matrix = torch.zeros(partition.width, len(labels), dtype=torch.float64)
    kept = (labels >= 0).nonzero().flatten()
    matrix[labels[kept], kept] = weight[kept]
    return matrix / matrix.sum(1, keepdim=True).clamp_min(torch.finfo(torch.float64).tiny)
