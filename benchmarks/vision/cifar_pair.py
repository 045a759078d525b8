"""Merge two CIFAR ResNets in every way and print the whole table, controls included.

python benchmarks/vision/cifar_pair.py                       # ResNet-56 + ResNet-20, same task
python benchmarks/vision/cifar_pair.py --pair specialists    # two networks of five classes each
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import asdict
from functools import cache
from pathlib import Path

import torch
from cifar_models import Parent, load
from data import cifar10, data_folder
from measure import Clock, Row, Task, logits, machine, parent_row, row
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

import hetmerge as hm
from hetmerge.controls import Ensemble, combine, head_control
from hetmerge.random_half import random_half

PAIRS = {
    "resnets": ("resnet_cifar10/resnet56", "resnet_cifar10/resnet20"),
    "specialists": (
        "specialists_cifar10/narrow_classes_0to4",
        "specialists_cifar10/narrow_classes_5to9",
    ),
}
FIXES = {
    "": {"refit": False},
    "bn": {"refit": False, "repair": "bn"},
    "repair": {"refit": False, "repair": "repair"},
    "refit": {"refit": True},
}
MERGES = [f"{match}+{fix}".rstrip("+") for match in ("permute", "zip") for fix in FIXES]
MERGES += ["select+refit", "auto+refit", "identity+refit"]
CONTROLS = ("parents", "average", "ensemble", "head", "blocks", "random", "union")
ROWS = [*CONTROLS[:5], *MERGES, *CONTROLS[5:]]
BATCH = 250


class Bench:
    """One pair: its parents, its calibration images, its held-out images."""

    def __init__(self, parents: list[Parent], calibration: Tensor, task: Task) -> None:
        self.parents = parents
        self.models = [parent.net for parent in parents]
        self.batches = list(calibration.split(BATCH))
        self.task = task
        self.outputs = "concat" if task.joint else "average"
        self.plan = cache(self._plan)

    def rows(self, wanted: list[str], widths: list[float]) -> Iterator[Row]:
        for name in wanted:
            if name in CONTROLS:
                yield from getattr(self, f"_{name}")()
            else:
                yield self._merge(name, "max")
        for width in widths:
            for name in ("permute+refit", "zip+refit", "select+refit"):
                yield self._merge(name, width)

    def _parents(self) -> Iterator[Row]:
        for index, parent in enumerate(self.parents):
            yield parent_row(f"{'AB'[index]} alone: {parent.name}", parent.net, self.task, index)

    def _average(self) -> Iterator[Row]:
        averaged = plain_average(self.models, self.outputs)
        if averaged is None:
            return
        yield row("average by name", averaged, self.task)
        with Clock() as clock:
            reestimate(averaged, self.batches)
        yield row("average by name + bn", averaged, self.task, clock.seconds)

    def _ensemble(self) -> Iterator[Row]:
        yield row("ensemble", Ensemble(self.models, self.outputs), self.task)
        if self.task.joint:
            scaled = Ensemble(self.models, self.outputs, self.batches)
            yield row("ensemble, scaled logits", scaled, self.task)

    def _head(self) -> Iterator[Row]:
        yield from self._control("head only", blocks=False)

    def _blocks(self) -> Iterator[Row]:
        yield from self._control("head on all blocks", blocks=True)

    def _control(self, label: str, blocks: bool) -> Iterator[Row]:
        for index, parent in enumerate(self.parents):
            taps = parent.net.block_names() if blocks else ()
            with Clock() as clock:
                control = head_control(
                    parent.net,
                    self.models,
                    self.batches,
                    head="linear",
                    outputs=self.outputs,
                    taps=taps,
                )
            yield row(f"{label}, body of {'AB'[index]}", control, self.task, clock.seconds)

    def _plan(self, match: str, width: str | float) -> tuple[hm.AlignmentPlan, float]:
        with Clock() as clock:
            plan = hm.plan(
                self.models, self.batches, match=match, width=width, outputs=self.outputs
            )
        return plan, clock.seconds

    def _merge(self, name: str, width: str | float) -> Row:
        match, _, fix = name.partition("+")
        plan, planning = self.plan(match, width)
        with Clock() as clock:
            result = hm.apply(plan, self.models, self.batches, **FIXES[fix])
        label = " + ".join(part for part in (match, fix) if part)
        label += "" if width == "max" else f", {width}x"
        note = ", ".join(f"{name} {share:.4f}" for name, share in plan.trials.items())
        return row(label, result.model, self.task, planning + clock.seconds, note)

    def _random(self) -> Iterator[Row]:
        with Clock() as clock:
            result = random_half(self.models, self.batches, outputs=self.outputs)
        yield row("random half + refit", result.model, self.task, clock.seconds)

    def _union(self) -> Iterator[Row]:
        plan, planning = self.plan("zip", "union")
        with Clock() as clock:
            result = hm.apply(plan, self.models, self.batches, refit=False)
        images = self.task.images
        wanted = combine([logits(model, images) for model in self.models], self.outputs)
        difference = (logits(result.model, images) - wanted).abs().max().item()
        note = f"largest logit difference to the ensemble {difference:.1e}"
        yield row("union", result.model, self.task, planning + clock.seconds, note)


def plain_average(models: list[nn.Module], outputs: str) -> nn.Module | None:
    """Average tensors of the same name; what only the deeper parent has is kept as it is.

    Returns None where shapes differ. With outputs="concat" the heads are stacked.
    """
    deep, other = sorted(models, key=lambda model: -len(model.state_dict()))
    merged, state, partner = deepcopy(deep), deep.state_dict(), other.state_dict()
    for key in state.keys() & partner.keys():
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


def table(rows: list[Row], task: Task, images: int) -> Table:
    error = (0.25 / len(task.labels)) ** 0.5
    shown = Table(
        caption=f"{len(task.labels)} test images (standard error at most {error:.4f}); "
        f"{images} unlabelled training images for matching, REPAIR, refit and heads"
    )
    shown.add_column("network", no_wrap=True)
    halves = [f"classes {half[0]}-{half[-1]}" for half in task.halves] if task.joint else []
    for heading in ("accuracy", *halves, "parameters", "seconds"):
        shown.add_column(heading, justify="right")
    shown.add_column("")
    for line in rows:
        cells = [
            "-" if value is None else f"{value:.4f}" for value in (line.accuracy, *line.halves)
        ]
        shown.add_row(line.name, *cells, f"{line.parameters:,}", f"{line.seconds:.1f}", line.note)
    return shown


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pair", choices=PAIRS, default="resnets")
    parser.add_argument("--models", nargs=2, type=Path, help="two .safetensors files instead")
    parser.add_argument("--images", type=int, default=1000, help="calibration images")
    parser.add_argument("--test", type=int, default=10000, help="test images")
    parser.add_argument("--quick", action="store_true", help="2,000 test images")
    parser.add_argument("--rows", default=",".join(ROWS), help=f"some of {','.join(ROWS)}")
    parser.add_argument("--widths", default="", help="further widths with refit, such as 1.25,1.5")
    parser.add_argument("--json", type=Path, help="also write everything to this file")
    chosen = parser.parse_args()
    chosen.rows = [name for name in chosen.rows.split(",") if name]
    unknown = set(chosen.rows) - set(ROWS)
    if unknown:
        parser.error(f"--rows: unknown {sorted(unknown)}; allowed: {', '.join(ROWS)}")
    chosen.widths = [float(width) for width in chosen.widths.split(",") if width]
    if chosen.quick:
        chosen.test = 2000
    return chosen


def main() -> None:
    chosen = arguments()
    paths = chosen.models or [data_folder() / f"{name}.safetensors" for name in PAIRS[chosen.pair]]
    parents = [load(Path(path)) for path in paths]
    images, labels = cifar10("test", chosen.test)
    calibration, _ = cifar10("train", chosen.images)
    bench = Bench(parents, calibration, Task(images, labels, tuple(p.classes for p in parents)))
    console = Console() if sys.stdout.isatty() else Console(width=130)
    rows = []
    for line in bench.rows(chosen.rows, chosen.widths):
        rows.append(line)
        console.print(f"{line.name}: {line.accuracy:.4f}  {line.seconds:.1f} s  {line.note}")
    console.print(table(rows, bench.task, len(calibration)))
    console.print(", ".join(f"{key} {value}" for key, value in machine().items()))
    if chosen.json:
        report = {
            **machine(),
            "parents": [parent.name for parent in parents],
            "test_images": len(labels),
            "calibration_images": len(calibration),
            "rows": [asdict(line) for line in rows],
        }
        chosen.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
