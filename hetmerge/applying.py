"""From a plan to a merged model."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from hetmerge.blueprint import Blueprint
from hetmerge.errors import InputError
from hetmerge.network import Call
from hetmerge.partition import Partition
from hetmerge.planning import AlignmentPlan, as_batches, setting_of
from hetmerge.progress import Progress
from hetmerge.projection import Projector
from hetmerge.realising import correct, is_exact, realise
from hetmerge.repair import REPAIRS
from hetmerge.report import Report, make_report
from hetmerge.scores import Evaluate, compare
from hetmerge.setting import Setting


@dataclass(frozen=True)
class MergeResult:
    """A merged model with the plan it came from and a report of what happened.

    Attributes:
        model: the merged module, in eval mode, of the class of the deepest parent.
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
    repair: str | None = None,
    weights: Sequence[float] | None = None,
    seed: int | None = None,
    progress: bool | None = None,
) -> MergeResult:
    """Merge parents as a plan says; the same plan, parents and batches give the same bytes.

    Args:
        plan: from :func:`hetmerge.plan` or :meth:`AlignmentPlan.load`.
        models: the parents the plan was made for, in the same order; never modified.
        batches: calibration inputs for refit and repair; needed unless both are off or the merge is
            exact.
        refit, repair, weights, seed: override what the plan says.
        progress: show bars on standard error; None: only on a terminal.

    Raises:
        PlanError: the plan was made for other models.
        InputError: an option is out of range, or refit is asked for without batches.
    """
    changes = {"refit": refit, "repair": repair, "weights": weights, "seed": seed}
    plan = plan.with_options(**{k: v for k, v in changes.items() if v is not None})
    calls = as_batches(batches)
    setting, partitions = setting_of(plan, models)
    return execute(plan, setting, partitions, calls, Progress(progress))


def execute(
    plan: AlignmentPlan,
    setting: Setting,
    partitions: dict[int, Partition],
    calls: Sequence[Call],
    progress: Progress,
) -> MergeResult:
    """Project, build, correct and report."""
    started = time.perf_counter()
    options = plan.options
    if options.repair not in REPAIRS:
        raise InputError(f"repair: got {options.repair!r}; allowed: {', '.join(REPAIRS)}")
    exact = is_exact(setting, partitions)
    if (options.refit and not exact or options.repair != "none") and not calls:
        raise InputError(
            "batches: none given, but refit or repair needs calibration inputs; "
            "pass batches=, or refit=False and repair='none'"
        )
    made = realise(setting, Projector(setting, partitions, plan.weights))
    fits = correct(made, options, calls, progress) if calls else []
    merged = made.network
    _finish(merged.model, setting)
    report = make_report(plan, setting, partitions, merged.model, fits, exact)
    report.seconds["apply"] = time.perf_counter() - started
    return MergeResult(merged.model, plan, report, made.blueprint)


def _finish(model: nn.Module, setting: Setting) -> None:
    """Leave the model as a user expects one: trainable, in eval mode."""
    base = setting.parents[setting.alignment.base]
    wanted = {n for n, p in base.source_parameters.items() if p}
    for name, parameter in model.named_parameters():
        if parameter.is_floating_point():
            parameter.requires_grad_(name in wanted or name not in base.source_parameters)
    model.eval()
