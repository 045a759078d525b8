"""The width dial: given a budget, the width of every space at which least is lost."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from hetmerge.allocation import Allocation, Problem, allocate
from hetmerge.calibration import Statistics
from hetmerge.errors import InputError
from hetmerge.losses import shares_lost
from hetmerge.matching import Matcher, Matching, match_spaces
from hetmerge.options import Options
from hetmerge.selecting import importance_of
from hetmerge.tracing.spaces import Space
from hetmerge.uniform import alike, is_uniform
from hetmerge.width_cost import Cost, flop_cost, parameter_cost

POINTS = 64  # widths at most that are tried of one space
MOST = 1 - 1e-6  # that may be lost of a space: the logarithm of what is kept stays finite


@dataclass(frozen=True)
class Curve:
    """What is lost at every width that spaces of equal width may have.

    Attributes:
        spaces: indices of the spaces; more than one where a family needs them equal.
        widths: ascending, the last one the union.
        losses: [widths] minus log of the share that is kept, summed over the places that read them.
    """

    spaces: tuple[int, ...]
    widths: list[int]
    losses: Tensor

    def half(self, widest: int, wide: bool) -> Curve:
        """From the widest parent on, or up to it."""
        at = [i for i, n in enumerate(self.widths) if (n >= widest if wide else n <= widest)]
        return Curve(self.spaces, [self.widths[i] for i in at], self.losses[at])


def match_within(statistics: Statistics, options: Options) -> Matching:
    """Partitions at the options' width, or at the widths that lose least within the budget.

    The widths that training was given are the best known guess of what a place needs: where the
    budget allows all of them no space becomes narrower, and where it does not none becomes wider.

    Raises:
        InputError: the budget is below the smallest possible cost, or as `match_spaces`.
    """
    if options.budget is None:
        return match_spaces(statistics, options)
    matcher = Matcher(statistics, options)
    even = matcher.match("max").partitions
    spaces = statistics.setting.skeleton.graph.spaces
    fixed = {space.index: space.size for space in spaces}
    fixed |= {k: partition.width for k, partition in even.items()}
    widths, note = _spent(matcher, fixed, *next(iter(options.budget.items())))
    matching = matcher.match({spaces[k].name: width for k, width in widths.items()})
    return replace(matching, notes=(*matching.notes, note))


def _spent(
    matcher: Matcher, widest: Mapping[int, int], name: str, limit: float
) -> tuple[dict[int, int], str]:
    """Width per space whose width can be chosen, and a remark for the plan."""
    setting = matcher.setting
    skeleton = setting.skeleton
    cost = parameter_cost(skeleton) if name == "parameters" else flop_cost(skeleton, setting.call)
    wide = cost.at(widest) <= limit
    curves = [curve.half(widest[curve.spaces[0]], wide) for curve in curves_of(matcher)]
    found = allocate(problem_of(curves, cost, widest, limit))
    if found is None:
        smallest = {k: curve.widths[0] for curve in curves for k in curve.spaces}
        raise InputError(
            f"budget: got {limit:,} {name}; allowed: {cost.at({**widest, **smallest}):,.0f} or "
            f"more, the cost with every space as narrow as match={matcher.options.match!r} makes it"
        )
    pairs = zip(curves, found.choice, strict=True)
    widths = {k: curve.widths[i] for curve, i in pairs for k in curve.spaces}
    return widths, _note(found, cost.at({**widest, **widths}), limit, name)


def _note(found: Allocation, cost: float, limit: float, name: str) -> str:
    return (
        f"budget: {cost:,.0f} of {limit:,} {name}; predicted loss {found.loss:.5f}, and no choice "
        f"of widths within the budget has less than {found.bound:.5f}"
    )


def curves_of(matcher: Matcher) -> list[Curve]:
    """Loss curves of the spaces whose width can be chosen; the others keep that of `max`.

    Where a family needs the units of a stage alike, the same place in all of them is one curve, and
    everything outside the units stays as it is.
    """
    setting = matcher.setting
    spaces = setting.skeleton.graph.spaces
    free = [space for space in spaces if matcher.adjustable(space) and any(matcher.places(space))]
    curves = {space.index: curve_of(matcher, space) for space in free}
    if not is_uniform(setting):
        return list(curves.values())
    groups = [
        (group, [curves[k] for k in group if k in curves])
        for group in alike(setting, matcher.partitions)
    ]
    found = [
        _together(matcher, group, members)
        for group, members in groups
        if len({tuple(curve.widths) for curve in members}) == 1
    ]
    return [curve for curve in found if curve.widths]


def _together(matcher: Matcher, group: Sequence[int], curves: Sequence[Curve]) -> Curve:
    """One curve of spaces of equal width; those that only one parent has can be widened alone."""
    spaces = matcher.setting.skeleton.graph.spaces
    compared = {curve.spaces[0] for curve in curves}
    alone = [size for k in group if k not in compared for size in matcher.sizes(spaces[k]).values()]
    first = bisect_left(curves[0].widths, max(alone, default=1))
    total = torch.stack([curve.losses for curve in curves]).sum(0)
    return Curve(tuple(group), curves[0].widths[first:], total[first:])


def curve_of(matcher: Matcher, space: Space) -> Curve:
    """Loss of one space at up to 64 widths, from the narrowest possible to the union.

    What one layer still gets of its input passes through the next, so the shares that are kept
    multiply and minus their logarithms add; a space counts once for every layer input it is.
    """
    sizes = matcher.sizes(space)
    widest, total = max(sizes.values()), sum(sizes.values())
    least = 1 if matcher.options.match in ("zip", "select", "pca") else widest
    tried = np.unique(np.linspace(least, total, POINTS).round().astype(int))
    widths = sorted({*tried.tolist(), widest})
    covariance = matcher.statistics.moments[space.name].covariance()
    given = dict(zip(sizes, matcher.places(space), strict=True))
    importance = importance_of(covariance, sizes, given, matcher.weights)
    lost = shares_lost(covariance, importance, matcher.at(space, widths), matcher.weights)
    reads = sum(matcher.weights[m] * len(places) for m, places in given.items())
    return Curve((space.index,), widths, -reads * torch.log1p(-lost.clamp(0, MOST)).cpu())


def problem_of(
    curves: Sequence[Curve], cost: Cost, fixed: Mapping[int, int], limit: float
) -> Problem:
    """The choice of widths as an optimisation problem; spaces without a curve are constants."""
    owner = {k: v for v, curve in enumerate(curves) for k in curve.spaces}
    coefficients, exponents = [], np.zeros((len(cost.terms), len(curves)), int)
    for row, (term, count) in enumerate(cost.terms.items()):
        value = float(count)
        for k in term:
            if k in owner:
                exponents[row, owner[k]] += 1
            else:
                value *= fixed[k]
        coefficients.append(value)
    return Problem(
        [np.array(curve.widths, float) for curve in curves],
        [curve.losses.numpy() for curve in curves],
        np.array(coefficients),
        exponents,
        limit * cost.inputs,
    )
