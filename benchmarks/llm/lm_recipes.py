"""Every way to make one predictor of a pair, by name: the rows of the tables."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache, partial

import torch
from lm_controls import body_and_head
from lm_data import DOMAINS, windows
from lm_measure import BATCH, Bits, Predictor, alone, bits, count_of, mixed
from lm_models import load
from lm_pairs import Pair
from torch import nn

import hetmerge as hm
from hetmerge.random_half import random_half

MATCHES = ("permute", "zip", "select", "pca")
WIDTHS = (1.25, 1.5)
STEPS = 64  # of a short distillation
RATE = 1e-3  # of its Adam
RIDGE = 1e-4


@dataclass(frozen=True)
class Scale:
    """Stretches of each domain that are calibrated and judged on."""

    calibration: int
    test: int


SCALES = {"smoke": Scale(8, 8), "small": Scale(128, 160)}


@dataclass(frozen=True)
class Made:
    """A predictor, its parameters, the seconds it took, and the network if it is one."""

    predict: Predictor
    parameters: int
    seconds: float = 0.0
    net: nn.Module | None = None


class Bench:
    """One pair: its parents, its calibration text, its held-out text."""

    def __init__(self, pair: Pair, seed: int, setting: str) -> None:
        self.models = [load(spec, setting) for spec in pair.specs(seed)]
        self.head, self.scale = pair.head, SCALES[setting]
        parts = [windows(d, "calibration", self.scale.calibration)[:, :-1] for d in DOMAINS]
        self.batches = list(torch.stack(parts, 1).flatten(0, 1).split(BATCH))
        self.calls = [{"input_ids": ids} for ids in self.batches]
        self.plan = cache(self._plan)
        self.merged = cache(self._merged)

    def rows(self, wanted: Mapping[str, Recipe]) -> Iterator[tuple[str, Made, Bits]]:
        for name, recipe in wanted.items():
            made = recipe(self)
            yield name, made, bits(made.predict, self.scale.test)

    def _plan(self, match: str, width: str | float) -> tuple[hm.AlignmentPlan, float]:
        began = time.perf_counter()
        fixed = {"head": self.head, "ridge": RIDGE, "progress": False}  # trials have them too
        plan = hm.plan(self.models, self.calls, match=match, width=width, **fixed)
        return plan, time.perf_counter() - began

    def _merged(self, match: str, width: str | float, refit: bool, head: str) -> Made:
        plan, planning = self.plan(match, width)
        began = time.perf_counter()
        plan = plan.with_options(head=head)
        found = hm.apply(plan, self.models, self.calls, refit=refit, ridge=RIDGE, progress=False)
        seconds = planning + time.perf_counter() - began
        return Made(alone(found.model), count_of(found.model), seconds, found.model)


Recipe = Callable[[Bench], Made]


def recipes() -> dict[str, Recipe]:
    """All rows in the order of the tables. A new recipe is one more entry here."""
    rows: dict[str, Recipe] = {f"{'AB'[i]} alone": partial(parent, index=i) for i in (0, 1)}
    for kind, title in (("logits", "logits"), ("kl", "probabilities"), ("bayes", "Bayes")):
        rows[f"ensemble, {title}"] = partial(ensemble, kind=kind)
    for i in (0, 1):
        for label, blocks in (("head", False), ("blocks", True)):
            rows[f"{label} {'AB'[i]}"] = partial(control, index=i, blocks=blocks)
    rows["pca"] = partial(merge, match="pca", refit=False)
    rows["pca+refit"] = partial(merge, match="pca")
    rows["permute"] = partial(merge, match="permute", refit=False)
    rows["permute+refit"] = partial(merge, match="permute")
    rows["random+refit"] = random_units
    rows["select+refit"] = partial(merge, match="select")
    rows["zip"] = partial(merge, match="zip", refit=False)
    rows["zip+refit"] = partial(merge, match="zip")
    rows["select"] = partial(merge, match="select", refit=False)
    rows["auto+refit"] = partial(merge, match="auto")
    for start in ("B", "A", "merge"):
        rows[f"distilled {start}, {STEPS} steps"] = partial(distil, start=start)
    for width in (*WIDTHS, "union"):
        label = width if isinstance(width, str) else f"{width:g}x"
        rows[f"pca+refit {label}"] = partial(merge, match="pca", width=width)
    rows["pca+refit budget"] = partial(within, match="pca", width="max")
    for width in WIDTHS:
        rows[f"pca+refit {width:g}x budget"] = partial(within, match="pca", width=width)
    rows["pca union, no refit"] = partial(merge, match="pca", width="union", refit=False)
    for head in ("ridge", "kl", "bayes"):
        rows[f"pca+refit, head {head}"] = partial(merge, match="pca", head=head)
    return rows


def parent(bench: Bench, index: int) -> Made:
    net = bench.models[index]
    return Made(alone(net), count_of(net), net=net)


def ensemble(bench: Bench, kind: str) -> Made:
    return Made(mixed(bench.models, kind), count_of(*bench.models))


def control(bench: Bench, index: int, blocks: bool) -> Made:
    """One parent's body under a head that is fitted as a merge's is."""
    began = time.perf_counter()
    body = bench.models[index]
    predict, count = body_and_head(body, bench.models, bench.batches, bench.head, blocks)
    return Made(predict, count, time.perf_counter() - began)


def merge(
    bench: Bench, match: str, refit: bool = True, width: str | float = "max", head: str = ""
) -> Made:
    return bench.merged(match, width, refit, head or bench.head)


def within(bench: Bench, match: str, width: str | float) -> Made:
    """As many parameters as at this width, divided between stream, heads and MLPs."""
    began = time.perf_counter()
    most = merge(bench, match, refit=False, width=width).parameters
    given = {"match": match, "head": bench.head, "ridge": RIDGE, "progress": False}
    found = hm.merge(bench.models, bench.calls, budget={"parameters": most}, **given)
    seconds = time.perf_counter() - began
    return Made(alone(found.model), count_of(found.model), seconds, found.model)


def random_units(bench: Bench) -> Made:
    """The control of every choice: a random half of each parent's; heads are matched as by zip."""
    began = time.perf_counter()
    found = random_half(bench.models, bench.calls, head=bench.head, ridge=RIDGE, progress=False)
    seconds = time.perf_counter() - began
    return Made(alone(found.model), count_of(found.model), seconds, found.model)


def distil(bench: Bench, start: str) -> Made:
    """Training after all, for comparison: on the calibration text, from a parent or the merge."""
    nets = {"A": bench.models[0], "B": bench.models[1]}
    student = nets.get(start) or merge(bench, "pca").net
    plan = bench.plan("pca", "max")[0].with_options(head=bench.head)
    began = time.perf_counter()
    net = hm.polish(
        student,
        bench.models,
        bench.calls,
        steps=STEPS,
        plan=plan,
        learning_rate=RATE,
        progress=False,
    )
    return Made(alone(net), count_of(net), time.perf_counter() - began, net)
