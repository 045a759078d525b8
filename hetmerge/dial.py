"""The width dial: given a budget, the width of every space at which least is lost."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hetmerge.allocation import Problem
from hetmerge.calibration import Statistics
from hetmerge.consent import Consent
from hetmerge.curves import Curves
from hetmerge.dials import Dial, dials_of
from hetmerge.errors import InputError
from hetmerge.gathering import Gathered
from hetmerge.halfway import Halfway
from hetmerge.huggingface import is_likely, is_pretrained
from hetmerge.matching import Matcher, Matching, match_spaces
from hetmerge.options import Options
from hetmerge.setting import Setting
from hetmerge.sizes import SizesOnly
from hetmerge.width_cost import Cost, flop_cost, parameter_cost

AMPLE = 4 / 3  # times the cost at `max`


@dataclass(frozen=True)
class Budget:
    """What a budget leaves to choose.

    Attributes:
        setting: the parents, aligned.
        dials: spaces and the widths they may have.
        cost: of the merged network.
        widest: the width of every space at `max`.
        limit: the budget.
    """

    setting: Setting
    dials: list[Dial]
    cost: Cost
    widest: dict[int, int]
    limit: float

    @staticmethod
    def of(matcher: Matcher, widest: Mapping[int, int]) -> Budget:
        """The budget of a matcher's options.

        Where the budget is ample, the widths that training was given are the best known guess of
        what a place needs, and none becomes narrower; not so with "pca", where a narrower stream
        may pay for more whole heads.

        Args:
            widest: widths at `max` of all spaces that are matched.

        Raises:
            InputError: the budget is below the smallest possible cost.
        """
        setting, given = matcher.setting, matcher.options.budget
        assert given is not None
        skeleton = setting.skeleton
        ((name, limit),) = given.items()
        if name == "parameters":
            cost = parameter_cost(skeleton)
        else:
            cost = flop_cost(skeleton, setting.call)
        known = {space.index: space.size for space in skeleton.graph.spaces} | dict(widest)
        dials = dials_of(matcher)
        if matcher.options.match != "pca" and limit >= AMPLE * cost.at(known):
            dials = [dial.at_least(known[dial.spaces[0]]) for dial in dials]
        smallest = {k: dial.widths[0] for dial in dials for k in dial.spaces}
        if (least := cost.at({**known, **smallest})) > limit:
            raise InputError(
                f"budget: got {limit:,.0f} {name}; allowed: {least:,.0f} or more, the cost with "
                f"every space as narrow as match={matcher.options.match!r} makes it"
            )
        return Budget(setting, dials, cost, known, limit)

    def spend(self, losses: Mapping[int, Tensor]) -> tuple[dict[int, int], str]:
        """Width per space whose width can be chosen, and a remark for the plan.

        Args:
            losses: space -> [widths of its dial], what is lost there.

        Raises:
            InputError: no configuration of the family that was looked at is within the budget.
        """
        curves = [torch.stack([losses[k] for k in d.compared]).sum(0) for d in self.dials]
        problem = problem_of(self.dials, curves, self.cost, self.widest, self.limit)
        found = self._consent().allocate(problem)
        if found is None:
            raise InputError(
                f"budget: got {self.limit:,.0f} {self.cost.name}; no configuration of "
                f"{type(self.setting.skeleton.model).__name__} was found within it; allowed: a "
                "larger one, or architecture"
            )
        chosen = [dial.widths[i] for dial, i in zip(self.dials, found.choice, strict=True)]
        widths = self._widths(chosen)
        cost = self.cost.at({**self.widest, **widths})
        note = (
            f"budget: {cost:,.0f} of {self.limit:,.0f} {self.cost.name}; predicted loss "
            f"{found.loss:.5f}, and no choice of widths within the budget has less than "
            f"{found.bound:.5f}"
        )
        return widths, note

    def _consent(self) -> Consent:
        """Which widths the family of the models has a configuration for."""
        pretrained = is_pretrained(self.setting.skeleton.model)

        def fits(chosen: Sequence[int]) -> bool:
            return not pretrained or is_likely(
                self.setting, {**self.widest, **self._widths(chosen)}
            )

        kinds = [dial.kind for dial in self.dials]
        return Consent(
            fits,
            streams=[s for s, kind in enumerate(kinds) if kind == "stream"],
            units=[s for s, kind in enumerate(kinds) if kind == "heads"],
            usual=[self.widest[dial.spaces[0]] for dial in self.dials],
        )

    def _widths(self, chosen: Sequence[int]) -> dict[int, int]:
        pairs = zip(self.dials, chosen, strict=True)
        return {k: width for dial, width in pairs for k in dial.spaces}


def match_within(statistics: Statistics, options: Options) -> Matching:
    """Partitions at the options' width, or at the widths that lose least within the budget.

    Raises:
        InputError: the budget is below the smallest possible cost, or as `match_spaces`.
    """
    if options.budget is None:
        return match_spaces(statistics, options)
    matcher = Curves(statistics, _counted(statistics, options))
    even = matcher.match("max").partitions
    spaces = statistics.setting.skeleton.graph.spaces
    budget = Budget.of(matcher, {k: partition.width for k, partition in even.items()})
    losses = {k: matcher.losses(spaces[k], d.widths) for d in budget.dials for k in d.compared}
    widths, note = budget.spend(losses)
    found = {spaces[k].name: width for k, width in widths.items()}
    matching = Matcher(statistics, options).match(found)
    return replace(matching, notes=(*matching.notes, note))


def _counted(statistics: Statistics, options: Options) -> Options:
    """With the importance that a budget goes by: of transformers models, the weights behind a
    place, which spread it better over streams, heads and MLPs than gradients do."""
    pretrained = is_pretrained(statistics.setting.skeleton.model)
    return replace(options, importance="weights") if pretrained else options


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
    matcher, budget = Curves(statistics, options), _budget_of_sizes(statistics, options)
    dials = {k: dial for dial in budget.dials for k in dial.compared}
    for part in parts:
        here = [k for k in (*part.moments, *part.axes) if k in dials]
        statistics.take(part)
        losses.update({k: matcher.losses(spaces[k], dials[k].widths) for k in here})
        statistics.forget()
    lacking = {k: matcher.guess(spaces[k], d.widths) for k, d in dials.items() if k not in losses}
    widths, note = budget.spend({**losses, **lacking})
    return {spaces[k].name: width for k, width in widths.items()}, note


def widths_foreseen(statistics: Statistics, options: Options) -> tuple[dict[str, int], str]:
    """Width by name of every space that can be chosen, by a guess of what is lost, as nothing has
    been seen; and a remark.

    Raises:
        InputError: the budget is below the smallest possible cost.
    """
    matcher, budget = Curves(statistics, options), _budget_of_sizes(statistics, options)
    spaces = statistics.setting.skeleton.graph.spaces
    losses = {k: matcher.guess(spaces[k], d.widths) for d in budget.dials for k in d.compared}
    widths, _ = budget.spend(losses)
    note = (
        f"budget: {budget.limit:,.0f} {budget.cost.name}; calibration chooses the widths, those "
        "above are a guess"
    )
    return {spaces[k].name: width for k, width in widths.items()}, note


def _budget_of_sizes(statistics: Statistics, options: Options) -> Budget:
    """What there is to choose, without moments."""
    matcher = SizesOnly(statistics, options)
    even = matcher.match("max").partitions
    return Budget.of(matcher, {k: partition.width for k, partition in even.items()})


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
