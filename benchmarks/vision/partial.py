"""Merge two CIFAR ResNets up to several units, one head per parent behind, and print the table.

python benchmarks/vision/partial.py --cuts layer2.2,layer3.2,all --matches zip,select
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

from cifar_models import Parent, load
from cifar_pair import PAIRS
from data import cifar10, data_folder
from measure import Clock, Task, count, machine, row
from recipes import BATCH
from torch import Tensor

import hetmerge as hm
from hetmerge.controls import Ensemble
from hetmerge.flops import flops_of
from hetmerge.tracing import export


def lines(
    parents: list[Parent], calibration: Tensor, task: Task, chosen: argparse.Namespace
) -> Iterator[str]:
    """The table, line by line."""
    models, batches = [parent.net for parent in parents], list(calibration.split(BATCH))
    outputs = "concat" if task.joint else "average"
    whole = sum(count(model) for model in models)
    work = sum(flops_of(export(model, batches[0]), ((batches[0],), {})) for model in models)
    yield "| match | width | up to | accuracy | halves | parameters | MFLOPs | seconds |"
    yield "|---|---|---|---|---|---|---|---|"
    for name, batch in (("ensemble", None), ("ensemble, scaled logits", batches)):
        found = row(name, Ensemble(models, outputs, batch), task)
        yield _line(name, "-", "-", found.accuracy, found.halves, whole, 1.0, work, "-")
    for match in chosen.matches.split(","):
        for width in chosen.widths.split(","):
            with Clock() as planning:
                plan = hm.plan(models, batches, match=match, width=_width(width), outputs=outputs)
            for cut in chosen.cuts.split(","):
                with Clock() as clock:
                    result = hm.apply(plan, models, batches, stop_at=None if cut == "all" else cut)
                found = row(match, result.model, task)
                size = result.report.merged_parameters
                seconds = f"{planning.seconds + clock.seconds:.0f}"
                yield _line(
                    match,
                    width,
                    cut,
                    found.accuracy,
                    found.halves,
                    size,
                    size / whole,
                    result.report.merged_flops,
                    seconds,
                )


def _line(
    match: str,
    width: str,
    cut: str,
    accuracy: float,
    halves: tuple[float | None, ...],
    size: int,
    share: float,
    work: int,
    seconds: str,
) -> str:
    each = " / ".join(f"{half:.4f}" for half in halves if half is not None)
    return (
        f"| {match} | {width} | {cut} | {accuracy:.4f} | {each} | {size:,} ({share:.0%}) "
        f"| {work / 1e6:.1f} | {seconds} |"
    )


def _width(text: str) -> str | float:
    return text if text in ("max", "union") else float(text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pair", choices=PAIRS, default="specialists")
    parser.add_argument("--models", nargs=2, type=Path, help="two .safetensors files instead")
    parser.add_argument("--images", type=int, default=1000, help="calibration images")
    parser.add_argument("--test", type=int, default=10000, help="test images")
    parser.add_argument("--cuts", default="layer2.2,layer3.1,layer3.2,all", help="units of A")
    parser.add_argument("--matches", default="zip,select")
    parser.add_argument("--widths", default="max", help="max, union or factors")
    chosen = parser.parse_args()
    paths = chosen.models or [data_folder() / f"{name}.safetensors" for name in PAIRS[chosen.pair]]
    parents = [load(path) for path in paths]
    images, labels = cifar10("test", chosen.test)
    calibration, _ = cifar10("train", chosen.images)
    task = Task(images, labels, tuple(p.classes for p in parents))
    for line in lines(parents, calibration, task, chosen):
        print(line, flush=True)
    print(", ".join(f"{key} {value}" for key, value in machine().items()))


if __name__ == "__main__":
    main()
