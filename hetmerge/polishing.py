"""Polishing: training after all, a short distillation that starts from the merged model."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from hetmerge.batches import Call
from hetmerge.calibration import calls_for
from hetmerge.errors import InputError
from hetmerge.partial import PartialModel
from hetmerge.planning import AlignmentPlan, setting_of
from hetmerge.progress import Progress
from hetmerge.projection import Projector
from hetmerge.realising import is_exact
from hetmerge.teaching import Teacher
from hetmerge.tracing.conventions import declared, inference

RATE = 1e-4  # at the top of the schedule


@dataclass(frozen=True)
class Polish:
    """How a merged model is polished, which is training.

    Attributes:
        steps: of Adam, one batch each.
        learning_rate: the highest; it rises over the first tenth of the steps and falls to 0.
    """

    steps: int
    learning_rate: float = RATE

    def __post_init__(self) -> None:
        if isinstance(self.steps, bool) or not isinstance(self.steps, int) or self.steps < 1:
            raise InputError(
                f"polish: got {self.steps!r} steps; allowed: a whole number from 1 (0 on the "
                "command line and in a configuration: no polishing)"
            )
        rate = self.learning_rate
        known = isinstance(rate, (int, float)) and not isinstance(rate, bool)
        if not known or not math.isfinite(rate) or rate <= 0:
            raise InputError(f"learning_rate: got {rate!r}; allowed: a finite number above 0")

    def rate(self, step: int) -> float:
        """Of one step from 0: one cycle, a linear rise and a cosine to the end."""
        rise = max(1, self.steps // 10)
        if step < rise:
            return self.learning_rate * (step + 1) / rise
        share = (step - rise + 1) / (self.steps - rise + 1)
        return self.learning_rate * (1 + math.cos(math.pi * share)) / 2


@dataclass(frozen=True)
class Polished:
    """What training did to a merged model, for its report.

    Attributes:
        steps, learning_rate: of Adam.
        loss: what was trained on.
        before, after: its mean over the calibration batches.
    """

    steps: int
    learning_rate: float
    loss: str
    before: float
    after: float

    def __str__(self) -> str:
        return (
            f"trained for {self.steps} steps of Adam on the parents' outputs; {self.loss} "
            f"{self.before:.4g} -> {self.after:.4g}"
        )


def polish(
    model: nn.Module,
    parents: Sequence[nn.Module],
    batches: Iterable[object],
    *,
    steps: int,
    plan: AlignmentPlan,
    learning_rate: float = RATE,
    progress: bool | None = None,
) -> nn.Module:
    """Train a copy of a merged model for some steps on what its parents answer.

    This is training, unlike everything else here. Outputs over a vocabulary come nearer to the
    parents' mixed probabilities in Kullback-Leibler divergence (the mixture of the plan's `head`;
    "kl" where that is "ridge"), others to the parents' outputs, averaged or side by side and scaled
    as refit scales them, in squared error. Adam, one batch per step in their order, no dropout,
    statistics of norms as they are; the same arguments give the same bytes on the same machine.

    Args:
        model: any module with the merged outputs, such as `result.model`, in float32 or float64;
            its trainable parameters are trained, in the copy.
        parents: of the plan, in its order; never modified.
        batches: calibration inputs, as :func:`hetmerge.merge` takes them.
        steps: of Adam, at least 1.
        plan: says how the parents' outputs, weights and vocabularies meet.
        learning_rate: the highest of the schedule.
        progress: show a bar on standard error; None: only on a terminal.

    Returns:
        The trained copy, in eval mode.

    Raises:
        InputError: an argument is out of range, no batches, a partial merge, nothing to train, or a
            loss that is not finite, with its step.
        PlanError: the plan was made for other parents.
    """
    settings = Polish(steps, learning_rate)
    return polished_copy(model, parents, batches, plan, settings, progress)[0]


def polished_copy(
    model: nn.Module,
    parents: Sequence[nn.Module],
    batches: Iterable[object],
    plan: AlignmentPlan,
    settings: Polish,
    progress: bool | None,
) -> tuple[nn.Module, Polished]:
    """See :func:`polish`; also says how the loss changed."""
    check_whole(model)
    calls = calls_for(parents, batches)
    setting, partitions = setting_of(plan, parents)
    scaled = plan.options.refit and not is_exact(setting, partitions)
    teacher = Teacher(Projector(setting, partitions, plan.weights), calls, plan, scaled)
    student = copy.deepcopy(model)
    return student, train(student, teacher, settings, Progress(progress))


def check_whole(model: nn.Module) -> None:
    """Not a partial merge.

    Raises:
        InputError: it is one.
    """
    if isinstance(model, PartialModel):
        raise InputError(
            "polish: got a partial merge, whose heads are the parents' own; allowed: a merge "
            "without stop_at"
        )


def train(model: nn.Module, teacher: Teacher, settings: Polish, progress: Progress) -> Polished:
    """Train a merged module in place; it is left in eval mode.

    Raises:
        InputError: nothing to train, a type that is too narrow, or a loss that is not finite.
    """
    trained = _trainable(model)
    optimizer = torch.optim.Adam(trained, settings.learning_rate)
    calls = teacher.calls
    model.eval()
    with inference(model), torch.enable_grad():
        before = _mean_loss(model, teacher, "before the first step")
        for step in progress.track(range(settings.steps), "polishing (training)"):
            call = calls[step % len(calls)]
            loss = _finite(_loss(model, teacher, call), f"at step {step + 1} of {settings.steps}")
            for group in optimizer.param_groups:
                group["lr"] = settings.rate(step)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        optimizer.zero_grad()
        after = _mean_loss(model, teacher, f"after step {settings.steps}")
    return Polished(settings.steps, settings.learning_rate, teacher.loss_name, before, after)


def _trainable(model: nn.Module) -> list[nn.Parameter]:
    found = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if not found:
        raise InputError(
            "model: none of its parameters is trainable; allowed for polishing: at least one "
            "(a merged model's are those of its deepest parent; see requires_grad_)"
        )
    for name, parameter in found.items():
        if parameter.dtype not in (torch.float32, torch.float64):
            kind = str(parameter.dtype).removeprefix("torch.")
            raise InputError(
                f"model: parameter {name!r} is {kind}; allowed for polishing: float32, float64"
            )
    return list(found.values())


def _loss(model: nn.Module, teacher: Teacher, call: Call) -> Tensor:
    wanted = teacher.wanted(call)
    outputs = declared(model(*call[0], **call[1]), model)
    return teacher.loss(call, outputs, wanted)


def _mean_loss(model: nn.Module, teacher: Teacher, when: str) -> float:
    with torch.no_grad():
        losses = [float(_finite(_loss(model, teacher, c), when)) for c in teacher.calls]
    return sum(losses) / len(losses)


def _finite(loss: Tensor, when: str) -> Tensor:
    if not bool(loss.isfinite()):
        raise InputError(
            f"polish: the loss is not finite {when}; allowed: a smaller learning_rate, finite "
            "weights and inputs"
        )
    return loss
