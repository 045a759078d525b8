"""The width dial: accuracy against parameters, every space by one factor or chosen by a budget.

python benchmarks/vision/dial.py --pair specialists --csv dial.csv --png docs/dial.png
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import matplotlib
from cifar_models import load
from cifar_pair import PAIRS
from data import cifar10, data_folder
from measure import Task, machine, row
from recipes import Bench
from rich.console import Console

import hetmerge as hm

OUT = Console()
NAMES = {
    (False, True): "one factor",
    (True, True): "budget",
    (False, False): "one factor, no refit",
    (True, False): "budget, no refit",
}


@dataclass(frozen=True)
class Point:
    """One merge; `factor` is the width whose parameters the budget got."""

    pair: str
    factor: float
    budget: bool
    refit: bool
    parameters: int
    accuracy: float
    note: str


def points(bench: Bench, pair: str, factors: Sequence[float], match: str) -> Iterator[Point]:
    """For every factor: uniform and budgeted widths of the same size, with and without refit."""
    for factor in factors:
        even = plan(bench, match, width="max" if factor == 1 else factor)
        limit = 0
        for budget in (False, True):
            chosen = plan(bench, match, budget={"parameters": limit}) if budget else even
            for refit in (True, False):
                result = hm.apply(chosen, bench.models, bench.batches, refit=refit, progress=False)
                line = row("", result.model, bench.task)
                limit = limit or line.parameters
                note = chosen.notes[-1] if budget else ""
                yield Point(pair, factor, budget, refit, line.parameters, line.accuracy, note)


def plan(bench: Bench, match: str, **width: object) -> hm.AlignmentPlan:
    return hm.plan(
        bench.models, bench.batches, match=match, outputs=bench.outputs, progress=False, **width
    )


def draw(found: Sequence[Point], path: Path) -> None:
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6.4, 4.2), layout="constrained")
    for (budget, refit), name in NAMES.items():
        mine = sorted(
            (p.parameters, p.accuracy) for p in found if (p.budget, p.refit) == (budget, refit)
        )
        style = ("o-" if budget else "s--", "C0" if refit else "C1")
        axes.plot(*zip(*mine, strict=True), style[0], color=style[1], label=name, markersize=4)
    axes.set_xlabel("parameters")
    axes.set_ylabel("accuracy")
    axes.set_title(found[0].pair, fontsize="medium")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=120)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pair", choices=PAIRS, default="resnets")
    parser.add_argument("--models", nargs=2, type=Path, help="two .safetensors files instead")
    parser.add_argument("--match", choices=("zip", "permute", "select"), default="zip")
    parser.add_argument("--factors", default="1,1.25,1.5,1.75,2", help="of the widest parent")
    parser.add_argument("--images", type=int, default=1000, help="calibration images")
    parser.add_argument("--test", type=int, default=10000, help="test images")
    parser.add_argument("--csv", type=Path, help="write the rows to this file")
    parser.add_argument("--png", type=Path, help="draw the rows into this file")
    return parser.parse_args()


def main() -> None:
    chosen = arguments()
    paths = chosen.models or [data_folder() / f"{name}.safetensors" for name in PAIRS[chosen.pair]]
    parents = [load(Path(path)) for path in paths]
    task = Task(*cifar10("test", chosen.test), tuple(p.classes for p in parents))
    bench = Bench(parents, cifar10("train", chosen.images)[0], task)
    pair = " + ".join(p.name for p in parents)
    factors = [float(factor) for factor in chosen.factors.split(",")]
    found = []
    for point in points(bench, pair, factors, chosen.match):
        found.append(point)
        name = NAMES[point.budget, point.refit]
        OUT.print(f"{point.factor}x {name}: {point.accuracy:.4f} {point.parameters:,} {point.note}")
    OUT.print(machine())
    if chosen.csv:
        with chosen.csv.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(asdict(found[0])))
            writer.writeheader()
            writer.writerows(asdict(point) for point in found)
    if chosen.png:
        draw(found, chosen.png)


if __name__ == "__main__":
    main()
