"""The width dial: given a budget, the width of every space at which least is lost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from hetmerge.allocation import Allocation, Problem, allocate
from hetmerge.calibration import Statistics
from hetmerge.costs import Cost, flop_cost, parameter_cost
from hetmerge.errors import InputError
from hetmerge.losses import losses
from hetmerge.matching import Matcher, Matching, match_spaces
from hetmerge.options import Options
from hetmerge.tracing.spaces import Space
from hetmerge.uniform import alike, is_uniform

POINTS = 64  # widths at most that are tried of one space


@dataclass(frozen=True)
class Curve:
    """What is lost at every width that spaces of equal width may have.

    Attributes:
        spaces: indices of the spaces; more than one where a family needs them equal.
        widths: ascending, the last one the union.
        losses: [widths] share of the parents' sensitivity, see :func:`curve_of`.
    """

    spaces: tuple[int, ...]
    widths: list[int]
    losses: Tensor


def match_within(statistics: Statistics, options: Options) -> Matching:
    """Partitions at the options' width, or at the widths that the budget allows.

    Raises:
        InputError: the budget is below the smallest possible cost, or as `match_spaces`.
    """
    if options.budget is None:
        return match_spaces(statistics, options)
    matcher = Matcher(statistics, options)
    matcher.match("max")
    setting = statistics.setting
    curves = curves_of(matcher)
    (name, limit), skeleton = next(iter(options.budget.items())), setting.skeleton
    cost = parameter_cost(skeleton) if name == "parameters" else flop_cost(skeleton, setting.call)
    fixed = {k: p.width for k, p in matcher.partitions.items()}
    fixed = {space.index: fixed.get(space.index, space.size) for space in skeleton.graph.spaces}
    found = allocate(problem_of(curves, cost, fixed, limit))
    if found is None:
        smallest = cost.at(fixed | {k: curve.widths[0] for curve in curves for k in curve.spaces})
        raise InputError(
            f"budget: got {limit:,} {name}; allowed: {smallest:,.0f} or more, the cost with every "
            f"space as narrow as match={options.match!r} can make it"
        )
    chosen = {
        k: curve.widths[i]
        for curve, i in zip(curves, found.choice, strict=True)
        for k in curve.spaces
    }
    matching = matcher.match({skeleton.graph.spaces[k].name: n for k, n in chosen.items()})
    note = _note(found, cost.at(fixed | chosen), limit, name)
    return replace(matching, notes=(*matching.notes, note))


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
    return [
        _together(matcher, group, found)
        for group, found in groups
        if len({tuple(c.widths) for c in found}) == 1
    ]


def _together(matcher: Matcher, group: Sequence[int], curves: Sequence[Curve]) -> Curve:
    """One curve of spaces of equal width, those of one parent among them, which can only grow."""
    own = {c.spaces[0] for c in curves}
    alone = [matcher.sizes(matcher.setting.skeleton.graph.spaces[k]) for k in group if k not in own]
    least = max((max(sizes.values()) for sizes in alone), default=1)
    allowed = [i for i, width in enumerate(curves[0].widths) if width >= least]
    losses = torch.stack([c.losses for c in curves]).sum(0)
    return Curve(tuple(group), [curves[0].widths[i] for i in allowed], losses[allowed])


def curve_of(matcher: Matcher, space: Space) -> Curve:
    """Loss of one space at up to 64 widths, from the narrowest possible to the union."""
    sizes = matcher.sizes(space)
    widest, total = max(sizes.values()), sum(sizes.values())
    least = 1 if matcher.options.match in ("zip", "select") else widest
    tried = np.unique(np.linspace(least, total, POINTS).round().astype(int))
    widths = sorted({*tried.tolist(), widest})
    covariance = matcher.statistics.moments[space.name].covariance()
    importance = _importance(matcher, covariance, space)
    found = losses(covariance, importance, matcher.at(space, widths), matcher.weights)
    return Curve((space.index,), widths, found)


import os


def _importance(matcher: Matcher, covariance: Tensor, space: Space) -> Tensor:
    mode = os.environ["MODE"]
    importance = torch.zeros_like(covariance)
    start = 0
    for (m, n), places in zip(matcher.sizes(space).items(), matcher.places(space), strict=True):
        span = slice(start, start + n)
        start += n
        Q = sum(p for p in places)
        if mode == "norm":
            Q = sum(p / float((p * covariance[span, span]).sum()) for p in places) / len(places)
        if mode == "normsum":
            Q = sum(p / float((p * covariance[span, span]).sum()) for p in places)
        if mode == "mean":
            Q = Q / len(places)
        if mode == "sqrt":
            Q = Q / float((Q * covariance[span, span]).sum()) ** 0.5
        importance[span, span] = matcher.weights[m] * Q
    return importance


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
