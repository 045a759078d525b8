"""From a plan to a merged model."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from hetmerge.batches import Call, samples
from hetmerge.blueprint import Blueprint
from hetmerge.calibration import FEWEST
from hetmerge.cost import Cost, estimate
from hetmerge.cutting import Cut, find_cut
from hetmerge.draft import Draft
from hetmerge.errors import InputError
from hetmerge.numerals import number_notes
from hetmerge.on_disk import Place, realise_on_disk
from hetmerge.partition import Partition
from hetmerge.planning import AlignmentPlan, batches_for, setting_of
from hetmerge.progress import Progress
from hetmerge.projection import Projector
from hetmerge.realising import Realised, correct, is_exact, realise
from hetmerge.refit import Memory, Refit
from hetmerge.report import Report, make_report
from hetmerge.scores import Evaluate, compare
from hetmerge.setting import Setting
from hetmerge.splitting import split

FITS = "fits.jsonl"  # of a merge on disk, until it is complete


@dataclass(frozen=True)
class MergeResult:
    """A merged model with the plan it came from and a report of what happened.

    Attributes:
        model: the merged module, in eval mode, of the class of the deepest parent; with `stop_at`
            a :class:`hetmerge.partial.PartialModel`.
        plan: the alignment plan (pure data, no weights).
        report: sizes, segments, what merged, explained variance per layer, seconds.
        blueprint: what, besides tensor shapes, makes the model differ from its deepest parent.
    """

    model: nn.Module
    plan: AlignmentPlan
    report: Report
    blueprint: Blueprint

    def compare(
        self,
        models: Sequence[nn.Module],
        evaluate: Evaluate,
        batches: Iterable[Any] | None = None,
    ) -> dict[str, dict[str, float]]:
        """Score the parents, their ensemble and the result with one function; kept in the report.

        Of a partial merge every head is scored by name as well.

        Args:
            models: the parents, in order.
            evaluate: gets a module in eval mode that takes what the parents take; returns a number,
                or numbers by name.
            batches: calibration inputs; where given and the outputs stand side by side, the
                ensemble's parents are scaled to each other on them.

        Returns:
            who -> name -> value.

        Raises:
            InputError: `evaluate` raised or returned something else; the message says for whom.
        """
        self.report.scores = compare(self, models, evaluate, batches)
        return self.report.scores

    def polish(
        self,
        models: Sequence[nn.Module],
        batches: Iterable[Any],
        *,
        steps: int,
        learning_rate: float | None = None,
        progress: bool | None = None,
    ) -> MergeResult:
        """The result with its model trained for some steps; see :func:`hetmerge.polish`.

        This is training. The report of the new result says so, with the losses before and after;
        its scores are empty, because they were the untrained model's.

        Args:
            models: the parents, in order; never modified.
            batches: calibration inputs.
            steps, learning_rate: of Adam.
            progress: show a bar on standard error; None: only on a terminal.
        """
        from hetmerge.polishing import RATE, Polish, polished_copy

        settings = Polish(steps, RATE if learning_rate is None else learning_rate)
        model, done = polished_copy(self.model, models, batches, self.plan, settings, progress)
        report = replace(self.report, polish=asdict(done), scores={})
        return replace(self, model=model, report=report)

    def save(self, directory: str | Path) -> None:
        """Write model, plan and report to a new directory; see :func:`hetmerge.save`."""
        from hetmerge.checkpoints import save

        save(self, directory)


def apply(
    plan: AlignmentPlan,
    models: Sequence[nn.Module],
    batches: Iterable[Any] | None = None,
    *,
    refit: bool | None = None,
    ridge: float | str | None = None,
    repair: str | None = None,
    weights: Sequence[float] | None = None,
    seed: int | None = None,
    stop_at: int | str | None = None,
    progress: bool | None = None,
) -> MergeResult:
    """Merge parents as a plan says; the same plan, parents and batches give the same bytes.

    Args:
        plan: from :func:`hetmerge.plan` or :meth:`AlignmentPlan.load`.
        models: the parents the plan was made for, in the same order; never modified.
        batches: calibration inputs for refit and repair; needed unless both are off or the merge is
            exact.
        refit, ridge, repair, weights, seed, stop_at: override what the plan says.
        progress: show bars on standard error; None: only on a terminal.

    Raises:
        PlanError: the plan was made for other models.
        InputError: an option is out of range, or refit is asked for without batches.
    """
    changes = {"refit": refit, "ridge": ridge, "repair": repair, "weights": weights, "seed": seed}
    changes["stop_at"] = stop_at
    plan = plan.with_options(**{k: v for k, v in changes.items() if v is not None})
    calls = batches_for(models, batches)
    setting, partitions = setting_of(plan, models)
    return prepare(plan, setting, partitions, calls).run(Progress(progress))


@dataclass(frozen=True)
class Prepared:
    """A projected network before it is corrected, and what that will cost."""

    plan: AlignmentPlan
    made: Realised
    calls: Sequence[Call]
    exact: bool
    cut: Cut | None
    started: float
    place: Place | None = None

    @property
    def refit(self) -> bool:
        """Layers will be solved for."""
        return self.plan.options.refit and not self.exact

    @property
    def cost(self) -> Cost:
        """Of the refit, or of what stands in its place."""
        return estimate(
            self.made.network,
            self.made.projector.setting,
            self.calls,
            refit=self.refit,
            auto=self.plan.options.ridge == "auto",
            cut=self.cut,
        )

    def run(self, progress: Progress) -> MergeResult:
        """Correct and report."""
        plan, made, cut = self.plan, self.made, self.cut
        projector, fitter = made.projector, None
        memory = Memory(self.place.folder / FITS) if self.place else None
        if self.calls:
            fitter = correct(made, plan.options, self.calls, progress, cut=cut, memory=memory)
        model, blueprint, partitions = made.network.model, made.blueprint, projector.partitions
        if isinstance(made.network.state, Draft):
            made.network.state.close(progress)
        elif cut is None:
            _finish(model, projector.setting)
        else:
            fitted = fitter if self.refit else None
            names = plan.options.heads(len(plan.parents))
            model, blueprint = split(projector, made.network, cut, fitted, names), Blueprint()
            partitions = cut.merged(partitions)
        found = fitter.found if fitter else Refit()
        program = None if cut else made.network.graph.program
        report = make_report(plan, projector.setting, partitions, model, found, self.exact, program)
        report.notes += number_notes(projector.setting, made.network)
        report.seconds["apply"] = time.perf_counter() - self.started
        return MergeResult(model, plan, report, blueprint)


def prepare(
    plan: AlignmentPlan,
    setting: Setting,
    partitions: dict[int, Partition],
    calls: Sequence[Call],
    place: Place | None = None,
) -> Prepared:
    """Check, project and build.

    Args:
        place: where the merged checkpoint is written while it is made; None: it is a module. Given
            if and only if the parents are checkpoints.
    """
    started = time.perf_counter()
    options = plan.options
    cut = find_cut(setting, options.stop_at)
    exact = is_exact(setting, partitions, cut)
    correcting = options.refit and not exact or options.repair != "none"
    if correcting and not calls:
        raise InputError(
            "batches: none given, but refit or repair needs calibration inputs; "
            "pass batches=, or refit=False and repair='none'"
        )
    if correcting and (count := sum(samples(call) for call in calls)) < FEWEST:
        raise InputError(
            f"batches: got {count} samples in all; allowed: {FEWEST} or more for refit or repair"
        )
    projector = Projector(setting, partitions, plan.weights, norm_scales=plan.norm_scales)
    made = realise_on_disk(setting, projector, place) if place else realise(setting, projector)
    return Prepared(plan, made, calls, exact, cut, started, place)


def _finish(model: nn.Module, setting: Setting) -> None:
    """Leave the model as a user expects one: trainable, in eval mode."""
    base = setting.parents[setting.alignment.base]
    wanted = {n for n, p in base.source_parameters.items() if p}
    for name, parameter in model.named_parameters():
        if parameter.is_floating_point():
            parameter.requires_grad_(name in wanted or name not in base.source_parameters)
    model.eval()
