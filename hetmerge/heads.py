"""Which heads (or groups of heads) of all parents are kept whole."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from hetmerge.partition import Partition

SUBSETS = 1000  # that are looked at one by one; beyond it, one unit is added after the other
JITTER = 1e-6
RANK = 1e-12


def keep_best(
    second: Tensor,
    importance: Tensor,
    sizes: Mapping[int, int],
    weights: Sequence[float],
    width: int,
) -> Partition:
    """The map that keeps the units, all of one size, from which all are best read off.

    Args:
        second, importance: [O, O] float64, see :func:`best_units`; parent after parent.
        sizes: parent -> units.
        weights: of all parents; units of a parent of weight 0 are not kept.
        width: units to keep; fewer where parents have no weight.
    """
    heard = [m for m in sizes if weights[m] > 0] or list(sizes)
    owner = [m for m, count in sizes.items() for _ in range(count)]
    units = torch.arange(len(second)).chunk(len(owner))
    free = [i for i, m in enumerate(owner) if m in heard]
    chosen = best_units(second, importance, [units[i] for i in free], min(width, len(free)))
    return keep_units(second, sizes, units, [free[i] for i in chosen])


def best_units(
    second: Tensor, importance: Tensor, units: Sequence[Tensor], count: int
) -> list[int]:
    """The units (sets of features) from which all features are best read off, where it matters.

    Every subset where they are few, else the best next unit again and again. With C the second
    moments and Q the importance, what a subset S explains is ``tr(C_SS^-1 (C Q C)_SS)``.

    Args:
        second: [O, O] float64 second moments of all features.
        importance: [O, O] float64, how errors in them count.
        units: index of each unit's features in O.
        count: how many are kept.

    Returns:
        Their numbers, ascending.
    """
    seen = second @ importance @ second
    floor = JITTER * second.diagonal().mean()
    if math.comb(len(units), count) <= SUBSETS:
        subsets = list(itertools.combinations(range(len(units)), count))
        explained = [_explained(second, seen, units, subset, floor) for subset in subsets]
        return list(subsets[explained.index(max(explained))])
    return sorted(_one_by_one(second, importance, units, count, floor)[0])


def lost_without(second: Tensor, importance: Tensor, units: Sequence[Tensor]) -> Tensor:
    """[units + 1] float64, share of what matters that is lost where the first k units are kept, of
    the order in which the best next one is kept again and again.

    Args:
        second, importance, units: see :func:`best_units`.
    """
    floor = JITTER * second.diagonal().mean()
    gains = second.new_tensor(_one_by_one(second, importance, units, len(units), floor)[1])
    whole = (second * importance).sum()
    kept = torch.cat([gains.new_zeros(1), gains.cumsum(0)])
    return (1 - kept / whole).clamp(0, 1) if whole > 0 else torch.zeros_like(kept)


def _explained(
    second: Tensor, seen: Tensor, units: Sequence[Tensor], subset: Sequence[int], floor: Tensor
) -> float:
    at = torch.cat([units[i] for i in subset])
    own = second[at][:, at].clone()
    own.diagonal().add_(floor)
    factor = torch.linalg.cholesky(own)
    return float(torch.cholesky_solve(seen[at][:, at], factor).diagonal().sum())


def _one_by_one(
    second: Tensor, importance: Tensor, units: Sequence[Tensor], count: int, floor: Tensor
) -> tuple[list[int], list[float]]:
    """The units in the order in which they are chosen, and what each of them explains.

    Block pivoted Cholesky: E is what the chosen units leave unexplained, F is E Q E.
    """
    left = second.clone()
    seen = left @ importance @ left
    chosen: list[int] = []
    explained: list[float] = []
    for _ in range(count):
        gains = {
            i: _gain(left, seen, units[i], floor) for i in range(len(units)) if i not in chosen
        }
        best = max(gains, key=lambda i: gains[i])
        chosen.append(best)
        explained.append(gains[best])
        at = units[best]
        own = left[at][:, at].clone()
        own.diagonal().add_(floor)
        factor = torch.linalg.cholesky(own)
        step = torch.linalg.solve_triangular(factor, left[at], upper=False).T  # [O, unit]
        read = left @ (importance @ step)
        seen = seen - step @ read.T - read @ step.T + step @ (step.T @ importance @ step) @ step.T
        left = left - step @ step.T
    return chosen, explained


def _gain(left: Tensor, seen: Tensor, at: Tensor, floor: Tensor) -> float:
    own = left[at][:, at].clone()
    own.diagonal().add_(floor)
    factor, failed = torch.linalg.cholesky_ex(own)
    return 0.0 if failed else float(torch.cholesky_solve(seen[at][:, at], factor).diagonal().sum())


def keep_units(
    second: Tensor, sizes: Mapping[int, int], units: Sequence[Tensor], kept: Sequence[int]
) -> Partition:
    """The map of an axis of units: some are kept as they are, the others read off them.

    Args:
        second: [O, O] float64 second moments of all features.
        sizes: parent -> units.
        units: index of each unit's features in O, parent after parent; all of one size.
        kept: numbers among the units.

    Returns:
        A selection whose read-offs are of the units' features: [lost * f, width * f] for f features
        in each.
    """
    labels = torch.full((len(units),), -1)
    labels[list(kept)] = torch.arange(len(kept))
    at = torch.cat([units[i] for i in kept])
    read = second[:, at] @ torch.linalg.pinv(second[at][:, at], rtol=RANK, hermitian=True)
    own = dict(zip(sizes, labels.split(list(sizes.values())), strict=True))
    lost = [unit for unit, label in zip(units, labels.tolist(), strict=True) if label < 0]
    read = read[torch.cat(lost)] if lost else read[:0]
    each = [int((x < 0).sum()) * len(units[0]) for x in own.values()]
    return Partition(len(kept), own, dict(zip(own, read.split(each), strict=True))).cpu()
