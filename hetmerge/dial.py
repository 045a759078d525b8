"""The width dial: given a budget, the width of every space at which least is lost."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hetmerge.allocation import Allocation, Problem, allocate
from hetmerge.calibration import Statistics
from hetmerge.dials import Dial, dials_of
from hetmerge.errors import InputError
from hetmerge.gathering import Gathered, visits_of
from hetmerge.halfway import Halfway
from hetmerge.losses import shares_lost
from hetmerge.matching import Matcher, Matching, match_spaces
from hetmerge.options import Options
from hetmerge.scope import Scope
from hetmerge.selecting import importance_of
from hetmerge.sizes import SizesOnly
from hetmerge.tracing.spaces import Space
from hetmerge.width_cost import Cost, flop_cost, parameter_cost

MOST = 1 - 1e-6  # that may be lost of a space: the logarithm of what is kept stays finite


@dataclass(frozen=True)
class Choice:
    """What a budget leaves to choose.

    Attributes:
        dials: spaces and the widths they may have.
        cost: of the merged network.
        widest: the width of every space at `max`.
        limit: the budget.
    """

    dials: list[Dial]
    cost: Cost
    widest: dict[int, int]
    limit: float

    @staticmethod
    def of(matcher: Matcher, seen: Iterable[int], widest: Mapping[int, int]) -> Choice:
        """The choice of a matcher's options.

        The widths that training was given are the best known guess of what a place needs: where the
        budget allows all of them no space becomes narrower, and where it does not none becomes
        wider.

        Args:
            seen: spaces that are compared in activations.
            widest: widths at `max` of all spaces that are matched.

        Raises:
            InputError: the budget is below the smallest possible cost.
        """
        setting, budget = matcher.setting, matcher.options.budget
        assert budget is not None
        skeleton = setting.skeleton
        ((name, limit),) = budget.items()
        cost = (
            parameter_cost(skeleton) if name == "parameters" else flop_cost(skeleton, setting.call)
        )
        known = {space.index: space.size for space in skeleton.graph.spaces} | dict(widest)
        wide = cost.at(known) <= limit
        dials = dials_of(matcher, set(seen), known)
        halves = [dial.half(known[dial.spaces[0]], wide) for dial in dials]
        smallest = {k: dial.widths[0] for dial in halves for k in dial.spaces}
        if (least := cost.at({**known, **smallest})) > limit:
            raise InputError(
                f"budget: got {limit:,} {name}; allowed: {least:,.0f} or more, the cost with every "
                f"space as narrow as match={matcher.options.match!r} makes it"
            )
        return Choice(halves, cost, known, limit)

    def spend(self, losses: Mapping[int, Tensor]) -> tuple[dict[int, int], str]:
        """Width per space whose width can be chosen, and a remark for the plan.

        Args:
            losses: space -> [widths of its dial], what is lost there.
        """
        curves = [torch.stack([losses[k] for k in d.compared]).sum(0) for d in self.dials]
        found = allocate(problem_of(self.dials, curves, self.cost, self.widest, self.limit))
        assert found is not None  # the smallest widths are within the budget
        pairs = zip(self.dials, found.choice, strict=True)
        widths = {k: dial.widths[i] for dial, i in pairs for k in dial.spaces}
        return widths, self._note(found, widths)

    def _note(self, found: Allocation, widths: Mapping[int, int]) -> str:
        cost = self.cost.at({**self.widest, **widths})
        return (
            f"budget: {cost:,.0f} of {self.limit:,} {self.cost.name}; predicted loss "
            f"{found.loss:.5f}, and no choice of widths within the budget has less than "
            f"{found.bound:.5f}"
        )


def match_within(statistics: Statistics, options: Options) -> Matching:
    """Partitions at the options' width, or at the widths that lose least within the budget.

    Raises:
        InputError: the budget is below the smallest possible cost, or as `match_spaces`.
    """
    if options.budget is None:
        return match_spaces(statistics, options)
    matcher = Matcher(statistics, options)
    even = matcher.match("max").partitions
    spaces = statistics.setting.skeleton.graph.spaces
    seen = [space.index for space in spaces if space.name in statistics.moments]
    choice = Choice.of(matcher, seen, {k: partition.width for k, partition in even.items()})
    losses = {k: losses_of(matcher, spaces[k], d.widths) for d in choice.dials for k in d.compared}
    widths, note = choice.spend(losses)
    matching = matcher.match({spaces[k].name: width for k, width in widths.items()})
    return replace(matching, notes=(*matching.notes, note))


def match_streamed(
    statistics: Statistics,
    gathered: Callable[[], Iterable[Gathered]],
    options: Options,
    halfway: Halfway | None,
) -> Matching:
    """The same of parents on disk, whose moments are forgotten space by space.

    Within a budget they are gathered twice: for what is lost at every width, and for matching at
    the widths that are chosen.

    Args:
        gathered: moments, piece by piece, anew with every call.
        halfway: where what is finished is kept for a run that is stopped.

    Raises:
        InputError: as :func:`match_within`.
    """
    if options.budget is None:
        return Matcher(statistics, options).match_stream(gathered(), options.width, halfway)
    known: dict[str, Any] = (halfway.take("budget") if halfway else None) or {"losses": {}}
    if halfway:
        halfway.keep("budget", lambda: known)
    if "widths" not in known:
        known["widths"], known["note"] = _widths_within(
            statistics, gathered(), options, known["losses"]
        )
    matching = Matcher(statistics, options).match_stream(gathered(), known["widths"], halfway)
    return replace(matching, notes=(*matching.notes, known["note"]))


def _widths_within(
    statistics: Statistics,
    parts: Iterable[Gathered],
    options: Options,
    losses: dict[int, Tensor],
) -> tuple[dict[str, int], str]:
    """Width by name of every space that can be chosen, and a remark.

    What is lost is that of a selection, or of principal directions: other partitions would have to
    be made for every width.

    Args:
        losses: of the spaces that are known already; filled.
    """
    spaces = statistics.setting.skeleton.graph.spaces
    matcher, choice = Matcher(statistics, options), _choice_of_sizes(statistics, options)
    dials = {k: dial for dial in choice.dials for k in dial.compared}
    for part in parts:
        here = [k for k in part.moments if k in dials]
        statistics.take(part)
        losses.update({k: losses_of(matcher, spaces[k], dials[k].widths) for k in here})
        statistics.forget()
    widths, note = choice.spend(losses)
    return {spaces[k].name: width for k, width in widths.items()}, note


def widths_foreseen(statistics: Statistics, options: Options) -> tuple[dict[str, int], str]:
    """Width by name of every space that can be chosen, before anything is seen: as if all features
    of a space mattered alike; and a remark.

    Raises:
        InputError: the budget is below the smallest possible cost.
    """
    matcher, choice = SizesOnly(statistics, options), _choice_of_sizes(statistics, options)
    spaces, losses = statistics.setting.skeleton.graph.spaces, {}
    for dial in choice.dials:
        for k in dial.compared:
            total = sum(matcher.sizes(spaces[k]).values())
            kept = (torch.tensor(dial.widths, dtype=torch.float64) / total).clamp_max(1)
            losses[k] = -_reads(matcher, spaces[k]) * kept.log()
    widths, _ = choice.spend(losses)
    note = (
        f"budget: {choice.limit:,} {choice.cost.name}; calibration chooses the widths, those above "
        "are as if all features mattered alike"
    )
    return {spaces[k].name: width for k, width in widths.items()}, note


def _choice_of_sizes(statistics: Statistics, options: Options) -> Choice:
    """What there is to choose, without moments."""
    setting, matcher = statistics.setting, SizesOnly(statistics, options)
    even = matcher.match("max").partitions
    seen = {
        visit.space
        for visit in visits_of(setting, Scope(alone=True))
        if not (visit.kind or visit.nest)
    }
    return Choice.of(matcher, seen, {k: partition.width for k, partition in even.items()})


def losses_of(matcher: Matcher, space: Space, widths: Sequence[int]) -> Tensor:
    """[widths] float64, what is lost of one space.

    What one layer still gets of its input passes through the next, so the shares that are kept
    multiply and minus their logarithms add; a space counts once for every layer input it is.
    """
    order = matcher.streams or matcher.options.match in ("select", "pca")
    lost = (_lost_in_order if order else _lost)(matcher, space, widths)
    return -_reads(matcher, space) * torch.log1p(-lost.clamp(0, MOST)).cpu()


def _reads(matcher: Matcher, space: Space) -> float:
    """How many layer inputs a space is, the mean over the parents."""
    given = zip(matcher.sizes(space), matcher.places(space), strict=True)
    return sum(matcher.weights[m] * len(places) for m, places in given)


def _lost_in_order(matcher: Matcher, space: Space, widths: Sequence[int]) -> Tensor:
    """Of one order in which features or directions are kept, for all widths."""
    total, at = sum(matcher.sizes(space).values()), torch.tensor(widths)
    lost = matcher.lost(space, max((n for n in widths if n < total), default=1)).cpu()
    return lost[at.clamp_max(len(lost) - 1)].masked_fill(at >= total, 0.0)


def _lost(matcher: Matcher, space: Space, widths: Sequence[int]) -> Tensor:
    """Of a partition for every width."""
    covariance = matcher.statistics.moments[space.name].covariance()
    sizes = matcher.sizes(space)
    given = dict(zip(sizes, matcher.places(space), strict=True))
    importance = importance_of(covariance, sizes, given, matcher.weights)
    return shares_lost(covariance, importance, matcher.at(space, widths), matcher.weights)


def problem_of(
    dials: Sequence[Dial],
    curves: Sequence[Tensor],
    cost: Cost,
    fixed: Mapping[int, int],
    limit: float,
) -> Problem:
    """The choice of widths as an optimisation problem; spaces without a dial are constants."""
    owner = {k: v for v, dial in enumerate(dials) for k in dial.spaces}
    coefficients, exponents = [], np.zeros((len(cost.terms), len(dials)), int)
    for row, (term, count) in enumerate(cost.terms.items()):
        value = float(count)
        for k in term:
            if k in owner:
                exponents[row, owner[k]] += 1
            else:
                value *= fixed[k]
        coefficients.append(value)
    return Problem(
        [np.array(dial.widths, float) for dial in dials],
        [curve.numpy() for curve in curves],
        np.array(coefficients),
        exponents,
        limit * cost.inputs,
    )
