"""How well the features that a partition puts together agree."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from typing import Any

import torch
from torch import Tensor

from hetmerge.ops.assignment import linear_sum_assignment
from hetmerge.ops.moments import Moments

BINS = 20  # of correlations from -1 to 1
MOST = 2048  # features of a parent that are matched to learn what chance gives


@dataclass(frozen=True)
class Agreement:
    """Correlations of the features of one space that share a cluster.

    Attributes:
        across: pairs of different parents per bin of correlation, 20 bins from -1 to 1.
        within: pairs of one parent, likewise.
        mean: mean correlation over the pairs across parents; None where there are none.
        chance: the same for features matched as well as possible on inputs that do not belong
            together, so for parents with nothing in common; None where it was not measured.
    """

    across: list[int]
    within: list[int]
    mean: float | None
    chance: float | None = None

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def agreement(
    similarity: Tensor,
    sizes: Mapping[int, int],
    labels: Mapping[int, Tensor],
    chance: Moments | None = None,
) -> Agreement:
    """Agreement of a partition.

    Args:
        similarity: [O, O] correlations, features of all parents one after another.
        sizes: parent -> its number of features, in that order.
        labels: parent -> [size] clusters; -1 for features in none.
        chance: moments of the same features on inputs that do not belong together.
    """
    flat = torch.cat([labels[m] for m in sizes])
    parent = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(list(sizes.values())))
    pairs = _pairs(flat)
    values = similarity[pairs[:, 0], pairs[:, 1]].double().clamp(-1, 1).cpu()
    same = parent[pairs[:, 0]] == parent[pairs[:, 1]]
    across = values[~same]
    return Agreement(
        _histogram(across),
        _histogram(values[same]),
        float(across.mean()) if len(across) else None,
        None if chance is None else by_chance(chance),
    )


def by_chance(moments: Moments) -> float:
    """Mean correlation of the best one-to-one matching, over all pairs of parents."""
    found = []
    for a, b in combinations(range(len(moments.sizes)), 2):
        score = moments.correlation_between(a, b)
        rows, columns = (torch.linspace(0, n - 1, min(n, MOST)).long() for n in score.shape)
        score = score[rows][:, columns]
        i, j = linear_sum_assignment(score)
        found.append(float(score[i, j].mean()))
    return sum(found) / len(found)


def sentence(agreements: Sequence[Agreement]) -> str:
    """Whether the parents are compatible, in plain words."""
    measured = [
        (a, sum(a.across)) for a in agreements if a.mean is not None and a.chance is not None
    ]
    pairs = sum(count for _, count in measured)
    if not pairs:
        return "No features of different parents were compared."
    mean = sum((a.mean or 0.0) * count for a, count in measured) / pairs
    chance = sum((a.chance or 0.0) * count for a, count in measured) / pairs
    facts = f"matched features correlate at {mean:.2f} on average, {chance:.2f} would be chance"
    share = (mean - chance) / (1 - chance) if chance < 1 else 0.0
    if share < 0.1:
        return (
            f"The parents have next to nothing in common: {facts}. Keep more of both (width), or "
            "do not merge them."
        )
    if share < 0.4:
        return f"The parents share part of what they compute: {facts}. Expect refit to matter."
    return f"The parents compute much the same: {facts}."


def _pairs(labels: Tensor) -> Tensor:
    """[pairs, 2] index pairs i < j of equal non-negative labels."""
    order = labels.argsort(stable=True)
    ordered = labels[order]
    counts = torch.bincount(ordered[ordered >= 0])
    found = []
    for gap in range(1, int(counts.max()) if len(counts) else 0):
        near = (ordered[gap:] == ordered[:-gap]) & (ordered[gap:] >= 0)
        found.append(torch.stack([order[:-gap][near], order[gap:][near]], 1))
    return torch.cat(found) if found else torch.zeros(0, 2, dtype=torch.int64)


def _histogram(values: Tensor) -> list[int]:
    bins = ((values + 1) / 2 * BINS).long().clamp(0, BINS - 1)
    counts: list[int] = torch.bincount(bins, minlength=BINS).tolist()
    return counts
