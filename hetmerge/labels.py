"""Labels of one space from similarities or positions, and the similarities they come from."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import torch
from torch import Tensor

from hetmerge.errors import InputError
from hetmerge.ops.assignment import linear_sum_assignment
from hetmerge.ops.moments import Moments
from hetmerge.ops.zipping import zip_match_info
from hetmerge.partition import Partition, identity


def similarity_of(moments: Moments) -> Tensor:
    """Pearson correlation [O, O], except that constant features count as alike.

    Merging them loses nothing that calibration can see, and leaves the room to the others; those of
    different parents go first. Where the moments hold nothing within a parent, its block is 0.
    """
    if not moments.within:
        return _across(moments)
    similarity = moments.correlation()
    dead = similarity.diagonal() == 0
    if bool((similarity.diagonal()[~dead] < 0.999).any()):
        del similarity  # as large as all that follows
        similarity = _scale_free(moments, dead)
    if not bool(dead.any()):
        return similarity
    parents = torch.arange(len(moments.sizes), device=dead.device)
    parent = parents.repeat_interleave(torch.tensor(moments.sizes, device=dead.device))
    both = dead[:, None] & dead[None]
    same = parent[:, None] == parent[None]
    return similarity.masked_fill_(both, 1.0).masked_fill_(both & same, 1 - 1e-6)


def _scale_free(moments: Moments, dead: Tensor) -> Tensor:
    """Correlations without the floor of 1e-7 under the deviations: quiet features count in full."""
    covariance = moments.covariance()
    inverse = covariance.diagonal().clamp_min(0).rsqrt().masked_fill(dead, 0)
    return covariance.mul_(inverse[:, None]).mul_(inverse).clamp_(-1.0, 1.0)


def _across(moments: Moments) -> Tensor:
    """The blocks between different parents, without that floor either."""
    deviation = moments.variance().sqrt().split(moments.sizes)
    starts = [0, *torch.tensor(moments.sizes).cumsum(0).tolist()]
    total, where = starts[-1], deviation[0].device
    similarity = torch.zeros(total, total, dtype=torch.float64, device=where)
    for a, b in combinations(range(len(moments.sizes)), 2):
        left, right = deviation[a][:, None], deviation[b]
        found = moments.covariance_between(a, b) / (left * right)
        found = found.masked_fill((left == 0) | (right == 0), 0.0).clamp_(-1.0, 1.0)
        found.masked_fill_((left == 0) & (right == 0), 1.0)
        rows, columns = slice(*starts[a : a + 2]), slice(*starts[b : b + 2])
        similarity[rows, columns], similarity[columns, rows] = found, found.T
    return similarity


def permute_labels(similarity: Tensor, sizes: Sequence[int], width: int) -> Tensor:
    """Labels of one-to-one matching, parent after parent.

    Each parent is matched to the clusters of those before it by linear sum assignment of the mean
    correlation; where `width` leaves room, only the best pairs are merged. The widest parent comes
    first, and of equally wide ones that which resembles all others most: the order in which they
    are given decides only where those are equal too.

    Args:
        similarity: [sum(sizes), sum(sizes)] correlations.
        sizes: features per parent.
        width: number of clusters, at least max(sizes).

    Returns:
        int64 [sum(sizes)] in [0, width).
    """
    starts = [0, *torch.tensor(list(sizes)).cumsum(0).tolist()]
    order = canonical_order(similarity, sizes)
    labels = torch.full((starts[-1],), -1, device=similarity.device)
    clusters = 0
    for m in order:
        rows = slice(starts[m], starts[m + 1])
        count = sizes[m]
        pairs = max(0, clusters + count - width)
        if pairs:
            score = _cluster_scores(similarity[rows], labels, clusters)
            mine, theirs = (i.long() for i in linear_sum_assignment(score))
            best = score[mine, theirs].argsort(descending=True, stable=True)[:pairs]
            labels[starts[m] + mine[best]] = theirs[best]
        alone = (labels[rows] < 0).nonzero().flatten() + starts[m]
        labels[alone] = torch.arange(clusters, clusters + len(alone), device=labels.device)
        clusters += len(alone)
    return labels


def canonical_order(similarity: Tensor, sizes: Sequence[int]) -> list[int]:
    """Parents by width, then by how much they resemble the others, then as given."""
    starts = [0, *torch.tensor(list(sizes)).cumsum(0).tolist()]
    return sorted(range(len(sizes)), key=lambda m: (-sizes[m], -_likeness(similarity, starts, m)))


def zip_labels(
    similarity: Tensor,
    sizes: Sequence[int],
    width: int,
    alpha: float,
    beta: float,
    backend: str,
    overwrite: bool = False,
) -> tuple[Tensor, bool]:
    """Labels of elastic zip, whatever the order of the parents, and whether budgets were relaxed.

    A cluster over several parents counts as the first one's when budgets are spent (arXiv
    2501.00061), so the parents are brought into the order of :func:`canonical_order`.

    Args:
        similarity: [sum(sizes), sum(sizes)] correlations.
        sizes: features per parent.
        overwrite: use the similarity as workspace, as :func:`hetmerge.ops.zip_match_info` does.

    Returns:
        int64 [sum(sizes)] in [0, width); True if a budget had to be dropped.
    """
    order = canonical_order(similarity, sizes)
    spans = torch.arange(sum(sizes), device=similarity.device).split(list(sizes))
    index = torch.cat([spans[m] for m in order])
    if order != sorted(order):
        similarity = similarity[index[:, None], index]
    counts = [sizes[m] for m in order]
    found = zip_match_info(similarity, counts, width, alpha, beta, backend, overwrite)
    labels = torch.empty_like(index)
    labels[index] = torch.as_tensor(found.labels).long()
    return labels, found.relaxed


def _likeness(similarity: Tensor, starts: Sequence[int], parent: int) -> float:
    """Sum of a parent's correlations with the others, rounded: sums differ with their order."""
    rows = slice(*starts[parent : parent + 2])
    total = similarity[rows].double().sum() - similarity[rows, rows].double().sum()
    return round(float(total), 6)


def _cluster_scores(rows: Tensor, labels: Tensor, clusters: int) -> Tensor:
    known = labels >= 0
    sums = rows.new_zeros(rows.shape[0], clusters)
    sums.index_add_(1, labels[known], rows[:, known])
    return sums / torch.bincount(labels[known], minlength=clusters)


def positional_partition(name: str, sizes: dict[int, int], target: int) -> Partition:
    """Feature i meets feature i; where the target leaves room, the last ones stay alone."""
    if target < max(sizes.values()):
        raise InputError(
            f"width: {target} for space {name!r} is below its widest parent "
            f"({max(sizes.values())}); match='zip', 'select' and 'pca' can shrink a parent"
        )
    labels: dict[int, Tensor] = {}
    used = 0
    for m, count in sorted(sizes.items(), key=lambda item: -item[1]):  # the widest first
        shared = max(0, used + count - target) if used else 0
        fresh = torch.arange(used, used + count - shared)
        labels[m] = torch.cat([torch.arange(shared), fresh])
        used += len(fresh)
    labels = dict(sorted(labels.items()))
    return Partition(target, labels) if used == target else identity(max(sizes.values()), sizes)
