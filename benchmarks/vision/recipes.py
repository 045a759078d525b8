"""Every way to merge a pair and every control, by name: the rows of all vision tables."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from fractions import Fraction
from functools import cache, partial

import torch
from cifar_models import Parent
from measure import Clock, Row, Task, logits, row
from torch import Tensor, nn

import hetmerge as hm
from hetmerge.controls import Ensemble, combine, head_control
from hetmerge.random_half import random_half

BATCH = 250
ROWS_HELP = "comma-separated names or patterns of rows, such as 'head*,zip+*'"
WIDTHS = (1.25, 1.5)
MATCHES = ("permute", "zip", "select")
BUDGETED = ("zip", "select")
PARTS = ("1/3", "2/3", "1")  # of the merged units, behind which every parent has a head of its own
FIXES = {
    "": {"refit": False},
    "bn": {"refit": False, "repair": "bn"},
    "repair": {"refit": False, "repair": "repair"},
    "refit": {"refit": True},
}


class Bench:
    """One pair: its parents, its calibration images, its held-out images."""

    def __init__(self, parents: list[Parent], calibration: Tensor, task: Task) -> None:
        self.parents = parents
        self.models = [parent.net for parent in parents]
        self.batches = list(calibration.split(BATCH))
        self.task = task
        self.outputs = "concat" if task.joint else "average"
        self.plan = cache(self._plan)

    def rows(self, wanted: Mapping[str, Recipe]) -> Iterator[Row]:
        """Make and measure one network after the other; what does not fit this pair is left out."""
        for name, recipe in wanted.items():
            made = recipe(self)
            if made is not None:
                yield row(name, made.net, self.task, made.seconds, made.note, made.parent)

    def _plan(self, match: str, width: str | float) -> tuple[hm.AlignmentPlan, float]:
        with Clock() as clock:
            plan = hm.plan(
                self.models, self.batches, match=match, width=width, outputs=self.outputs
            )
        return plan, clock.seconds


@dataclass(frozen=True)
class Made:
    """A network, the seconds it took, and which parent it is, where it is one of them."""

    net: nn.Module
    seconds: float = 0.0
    note: str = ""
    parent: int | None = None


Recipe = Callable[[Bench], Made | None]


def recipes(widths: Sequence[float] = WIDTHS) -> dict[str, Recipe]:
    """All rows in the order of the tables. A new recipe is one more entry here."""
    rows: dict[str, Recipe] = {f"{'AB'[i]} alone": partial(alone, index=i) for i in (0, 1)}
    rows |= {"average": average, "average+bn": average_reestimated}
    rows |= {"ensemble": ensemble, "ensemble+scaled": scaled_ensemble}
    for label, blocks in (("head", False), ("blocks", True)):
        for i in (0, 1):
            rows[f"{label} {'AB'[i]}"] = partial(control, index=i, blocks=blocks)
    rows["identity+refit"] = partial(merge, match="identity", fix="refit")
    rows["random+refit"] = random_units
    for match in MATCHES:
        for fix in FIXES:
            rows[f"{match}+{fix}".rstrip("+")] = partial(merge, match=match, fix=fix)
    rows["auto+refit"] = partial(merge, match="auto", fix="refit")
    for match in ("zip", "select"):
        for part in PARTS:
            rows[f"{match}+refit, {part} of units"] = partial(partly, match=match, part=part)
    for width in widths:
        for match in MATCHES:
            wide = partial(merge, match=match, fix="refit", width=width)
            rows[f"{match}+refit {width:g}x"] = wide
        for match in BUDGETED:
            rows[f"{match}+refit {width:g}x budget"] = partial(within, match=match, width=width)
    for match in BUDGETED:
        rows[f"{match}+refit budget"] = partial(within, match=match, width="max")
    rows["union"] = union
    return rows


def alone(bench: Bench, index: int) -> Made:
    parent = bench.parents[index]
    return Made(parent.net, note=parent.name, parent=index)


def average(bench: Bench) -> Made | None:
    averaged = plain_average(bench.models, bench.outputs)
    return None if averaged is None else Made(averaged)


def average_reestimated(bench: Bench) -> Made | None:
    made = average(bench)
    if made is None:
        return None
    with Clock() as clock:
        reestimate(made.net, bench.batches)
    return Made(made.net, clock.seconds)


def ensemble(bench: Bench) -> Made:
    return Made(Ensemble(bench.models, bench.outputs))


def scaled_ensemble(bench: Bench) -> Made | None:
    if not bench.task.joint:
        return None
    return Made(Ensemble(bench.models, bench.outputs, bench.batches))


def control(bench: Bench, index: int, blocks: bool) -> Made:
    """One parent's body under a fitted head, on its last features or on those of all blocks."""
    body = bench.parents[index].net
    with Clock() as clock:
        net = head_control(
            body,
            bench.models,
            bench.batches,
            head="linear",
            outputs=bench.outputs,
            taps=body.block_names() if blocks else (),
        )
    return Made(net, clock.seconds)


def merge(bench: Bench, match: str, fix: str, width: str | float = "max") -> Made:
    plan, planning = bench.plan(match, width)
    with Clock() as clock:
        result = hm.apply(plan, bench.models, bench.batches, **FIXES[fix])
    note = ", ".join(f"{name} {share:.4f}" for name, share in plan.trials.items())
    return Made(result.model, planning + clock.seconds, note)


def within(bench: Bench, match: str, width: str | float) -> Made:
    """As many parameters as at this width, divided among the spaces by what they lose."""
    even = hm.apply(bench.plan(match, width)[0], bench.models, bench.batches, refit=False)
    budget = {"parameters": even.report.merged_parameters}
    with Clock() as clock:
        result = hm.merge(
            bench.models, bench.batches, match=match, budget=budget, outputs=bench.outputs
        )
    return Made(result.model, clock.seconds, result.plan.notes[-1])


def partly(bench: Bench, match: str, part: str) -> Made:
    """One trunk for this part of the units, then the rest of each parent."""
    plan, planning = bench.plan(match, "max")
    units = sum(len(stage) for stage in plan.slots[plan.base])
    with Clock() as clock:
        stop_at = round(Fraction(part) * units)
        result = hm.apply(plan, bench.models, bench.batches, stop_at=stop_at)
    return Made(result.model, planning + clock.seconds, f"{stop_at} of {units} units merged")


def random_units(bench: Bench) -> Made:
    """The control of every choice of units: a random half of each parent's."""
    with Clock() as clock:
        result = random_half(bench.models, bench.batches, outputs=bench.outputs)
    return Made(result.model, clock.seconds)


def union(bench: Bench) -> Made:
    made = merge(bench, "zip", "", "union")
    images = bench.task.images
    wanted = combine([logits(model, images) for model in bench.models], bench.outputs)
    difference = (logits(made.net, images) - wanted).abs().max().item()
    note = f"largest logit difference to the ensemble {difference:.1e}"
    return Made(made.net, made.seconds, note)


def plain_average(models: list[nn.Module], outputs: str) -> nn.Module | None:
    """Average tensors of the same name; what only the deeper parent has is kept as it is.

    Returns None where shapes differ. With outputs="concat" the heads are stacked.
    """
    deep, other = sorted(models, key=lambda model: -len(model.state_dict()))
    merged, state, partner = deepcopy(deep), deep.state_dict(), other.state_dict()
    for key in state.keys() & partner.keys():
        if state[key].shape[1:] != partner[key].shape[1:]:
            return None
        if key.startswith("linear.") and outputs == "concat":
            state[key] = torch.cat([model.state_dict()[key] for model in models])
        elif state[key].shape != partner[key].shape:
            return None
        elif state[key].is_floating_point():
            state[key] = (state[key] + partner[key]) / 2
    merged.linear = nn.Linear(deep.linear.in_features, len(state["linear.weight"]))
    merged.load_state_dict(state)
    return merged.eval()


def reestimate(net: nn.Module, batches: list[Tensor]) -> None:
    """Replace every BatchNorm's statistics by those of `batches`, as a cumulative average."""
    norms = [module for module in net.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
    net.train()
    with torch.no_grad():
        for batch in batches:
            net(batch)
    net.eval()
