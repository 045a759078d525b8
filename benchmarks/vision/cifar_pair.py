"""Merge two CIFAR ResNets in every way and print the whole table, controls included.

python benchmarks/vision/cifar_pair.py                       # ResNet-56 + ResNet-20, same task
python benchmarks/vision/cifar_pair.py --pair specialists    # two networks of five classes each
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path

from cifar_models import load
from data import cifar10, data_folder
from measure import Row, Task, machine
from recipes import ROWS_HELP, Bench, recipes
from results import lines
from rich.console import Console
from rich.table import Table

PAIRS = {
    "resnets": ("resnet_cifar10/resnet56", "resnet_cifar10/resnet20"),
    "specialists": (
        "specialists_cifar10/narrow_classes_0to4",
        "specialists_cifar10/narrow_classes_5to9",
    ),
}


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
    parser.add_argument("--rows", default="*", help=ROWS_HELP)
    parser.add_argument("--widths", default="", help="further widths with refit, such as 1.25,1.5")
    parser.add_argument("--json", type=Path, help="also write everything to this file")
    chosen = parser.parse_args()
    widths = [float(width) for width in chosen.widths.split(",") if width]
    chosen.rows = lines.matching(recipes(widths), chosen.rows, ",")
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
    for line in bench.rows(chosen.rows):
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
