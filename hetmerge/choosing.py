"""Which way of matching suits these parents: every candidate is merged for a trial and judged.

A loss of single spaces does not see how what one layer misses adds up over the layers behind it. So
the candidates are merged, on part of the calibration inputs, and judged on the others by what they
explain of the outputs (:mod:`hetmerge.judging`). No labels are read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from hetmerge.batches import Call, samples
from hetmerge.calibration import Statistics
from hetmerge.dial import match_within
from hetmerge.errors import HetmergeError, InputError, PlanError
from hetmerge.gathering import gather
from hetmerge.judging import outputs_explained
from hetmerge.maps_cost import NoRoom
from hetmerge.matching import rotation_of
from hetmerge.norm_scales import norm_scales
from hetmerge.options import Options
from hetmerge.partition import Partition
from hetmerge.progress import Progress
from hetmerge.projection import Projector
from hetmerge.realising import Realised, correct, is_exact, realise
from hetmerge.refit import Memory
from hetmerge.scope import Scope, shrinks
from hetmerge.setting import Setting

if TYPE_CHECKING:
    from hetmerge.planning import AlignmentPlan

SAMPLES = 500  # inputs that a trial is made from, and as many that it is judged by
ROWS = 15_000  # of a trial's refit: a quarter of a merge's
Finish = Callable[[dict[int, Partition]], tuple[dict[int, Partition], list[str]]]


@dataclass(frozen=True)
class Choice:
    """What match="auto" came to.

    Attributes:
        match: the way of matching that is taken.
        explained: candidate -> what its trial explains of the parents' outputs on inputs that it
            was not made from; empty where nothing had to be tried.
        notes: remarks for the plan.
    """

    match: str
    explained: dict[str, float]
    notes: tuple[str, ...]

    def told(self, plan: AlignmentPlan) -> AlignmentPlan:
        """A plan of that match, which says how it came to it."""
        options = replace(plan.options, match="auto")
        notes = (*plan.notes, *self.notes)
        return replace(plan, options=options, notes=notes, trials=self.explained)

    def warned(self, made: Realised, options: Options, held: Sequence[Call]) -> Choice:
        """With a remark, where refit made the trial worse.

        Args:
            made: the network of the match as it is projected.
            held: what the trial was judged by.
        """
        before, after = outputs_explained(made, held, options), self.explained[self.match]
        if before <= after:
            return self
        note = (
            f"refit made the trial worse on other inputs, {before:.4f} -> {after:.4f} of the "
            "parents' outputs: half of the calibration inputs are too few for it; give more, or "
            "refit=False"
        )
        return replace(self, notes=(*self.notes, note))


def candidates(setting: Setting, options: Options) -> list[str]:
    """The ways of matching that are tried; of equally good ones the first is taken.

    Permutation cannot make a space narrower than a parent's. Where a stream has no preferred basis
    "pca" takes the place of "select", which it is everywhere else; not in partial merges.
    """
    spaces = setting.skeleton.graph.spaces
    whole = options.stop_at is None  # behind a cut a parent needs its stream as it was
    turns = whole and any(rotation_of(setting, space.index) for space in spaces)
    one_to_one = options.budget is None and not shrinks(setting, options)
    return [*(["permute"] if one_to_one else []), "zip", "pca" if turns else "select"]


def choose(statistics: Statistics, options: Options, finish: Finish, progress: Progress) -> Choice:
    """The way of matching whose merge gives the parents' outputs best, and how well each does.

    Args:
        statistics: of the parents as they are aligned, whose moments are not needed: a trial knows
            no input that it is judged by.
        options: of the merge that is wanted; every trial has the same but for `match`.
        finish: makes of matched partitions those that can be built, and remarks.
    """
    setting, names = statistics.setting, candidates(statistics.setting, options)
    fit, held = split(statistics.calls)
    known = statistics.of(fit)
    scope = Scope.of(setting, replace(options, match=names[-1]))
    for part in gather(setting, fit, progress, scope):
        known.take(part)
    matchings = {"zip": match_within(known, replace(options, match="zip"))}
    if is_exact(setting, matchings["zip"].partitions):
        return Choice("zip", {}, ())
    shares, made = options.shares(len(setting.parents)), None

    def projected(name: str) -> Realised:
        nonlocal made
        if name not in matchings:
            matchings[name] = match_within(known, replace(options, match=name))
        partitions = finish(matchings[name].partitions)[0]
        scales = norm_scales(setting, known.squares, partitions, shares)
        projector = Projector(setting, partitions, shares, norm_scales=scales)
        fits = made is not None and made.holds(projector)
        made = made.refilled(projector) if made and fits else realise(setting, projector)
        return made

    def attempt(name: str) -> float:
        return trial(projected(name), options, fit, held, Progress(enabled=False))

    found = attempts(progress.track(names, "trials of matching"), attempt, fit)
    if not options.refit:
        return found
    return found.warned(projected(found.match), options, held)


def attempts(names: Iterable[str], attempt: Callable[[str], float], fit: Sequence[Call]) -> Choice:
    """The candidate that explains most, the first of equal ones.

    Raises:
        InputError, PlanError, NoRoom: no candidate can be merged; that of the first.
    """
    explained, failed = dict[str, float](), dict[str, HetmergeError]()
    for name in names:
        try:
            explained[name] = attempt(name)
        except (InputError, PlanError, NoRoom) as error:
            failed[name] = error
    if not explained:
        raise next(iter(failed.values()))
    best = max(explained, key=lambda name: explained[name])
    shares = ", ".join(f"{name} {share:.4f}" for name, share in explained.items())
    notes = [f"match='auto': {name!r} cannot be tried: {error}" for name, error in failed.items()]
    notes.append(
        f"match='auto' took {best!r} in every space: share of the parents' outputs that a trial "
        f"merge explains on other inputs: {shares} "
        f"({len(explained)} trials, each from {sum(map(samples, fit))} inputs)"
    )
    return Choice(best, explained, tuple(notes))


def trial(
    made: Realised,
    options: Options,
    fit: Sequence[Call],
    held: Sequence[Call],
    progress: Progress,
    memory: Memory | None = None,
) -> float:
    """Correct a network on some inputs; what it explains on others, so that a tie is not decided by
    rounding.

    Args:
        memory: fits of a run that was stopped.
    """
    correct(made, options, fit, progress, rows=ROWS, memory=memory)
    return round(outputs_explained(made, held, options), 6)


def split(calls: Sequence[Call]) -> tuple[list[Call], list[Call]]:
    """Batches to make a trial from, and others to judge it by; a single batch serves for both."""
    if len(calls) == 1:
        return list(calls), list(calls)
    return _enough(calls[::2]), _enough(calls[1::2])


def _enough(calls: Sequence[Call]) -> list[Call]:
    """The fewest batches with so many inputs, evenly spread."""
    for count in range(1, len(calls) + 1):
        chosen = [calls[i] for i in torch.linspace(0, len(calls) - 1, count).long().tolist()]
        if sum(map(samples, chosen)) >= SAMPLES:
            return chosen
    return list(calls)
