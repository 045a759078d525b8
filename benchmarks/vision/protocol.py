"""Merge trained networks of different depth and width, and pairs of one shape beside them.

python benchmarks/vision/protocol.py                              # whatever is trained
python benchmarks/vision/protocol.py --pairs depth,vgg --seeds 0 --rows 'head*,zip+*'

Lines that the results file has already are not run again, unless --again is given.
"""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from cifar_models import Parent, load
from data import cifar10
from measure import Task
from pairs import PAIRS, Pair, with_homogeneous
from recipes import ROWS_HELP, Bench, Recipe, recipes
from results import Result, add, file_of, lines, read, result_of
from rich.console import Console
from specs import Spec
from torch import Tensor

OUT = Console()
SEEDS = (0, 1, 2)


@dataclass(frozen=True)
class Scale:
    """How many images."""

    test: int
    calibration: int


ALL = Scale(10000, 1000)
SCALES = {"smoke": Scale(200, 250), "small": ALL, "long": ALL, "full": ALL}


@cache
def images(scale: Scale) -> tuple[Tensor, Tensor, Tensor]:
    """Test images and labels, and calibration images, which the merge reads without labels."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return *cifar10("test", scale.test), cifar10("train", scale.calibration)[0].to(device)


def missing(pair: Pair, seed: int, setting: str) -> list[Spec]:
    return [spec for spec in pair.specs(seed) if not spec.path(setting).exists()]


def bench_of(pair: Pair, seed: int, setting: str) -> Bench:
    """The trained parents of a pair with the images of the setting."""
    test, labels, calibration = images(SCALES[setting])
    parents = [load(spec.path(setting)) for spec in pair.specs(seed)]
    for parent in parents:
        parent.net.to(calibration.device)
    task = Task(test, labels, tuple(parent.classes for parent in parents))
    return Bench(parents, calibration, task)


def run(
    pair: Pair, seed: int, setting: str, wanted: dict[str, Recipe], path: Path, commit: str
) -> None:
    """Make and measure the wanted networks of one pair; every line is kept as it comes."""
    bench = bench_of(pair, seed, setting)
    for line in bench.rows(wanted):
        result = result_of(line, pair, seed, commit)
        check(result, bench.parents, len(bench.task.labels))
        add(path, result)
        OUT.print(
            f"{pair.name}, seed {seed}, {line.name}: {result.joint:.4f}  {result.seconds:.1f} s",
            highlight=False,
        )


def check(result: Result, parents: list[Parent], count: int) -> None:
    """A parent must be as good as its file says, within four standard errors of `count` images."""
    for letter, parent, own in zip("AB", parents, (result.first, result.second), strict=True):
        if result.recipe != f"{letter} alone" or parent.accuracy is None or own is None:
            continue
        if abs(own - parent.accuracy) > 4 * math.sqrt(0.25 / (count / 2)):
            raise SystemExit(
                f"{parent.name}: {own:.4f} of the images of its own classes are right, "
                f"but its file says {parent.accuracy:.4f}"
            )


def arguments(words: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--setting", choices=SCALES, default="small")
    parser.add_argument("--pairs", help="comma-separated names; all without it")
    parser.add_argument("--seeds", default=",".join(map(str, SEEDS)))
    parser.add_argument("--rows", default="*", help=ROWS_HELP)
    parser.add_argument("--again", action="store_true", help="also run what the file has already")
    parser.add_argument("--results", type=Path, help="CSV file; by default in benchmarks/results")
    chosen = parser.parse_args(words)
    known = {pair.name: pair for pair in with_homogeneous(PAIRS[chosen.setting])}
    names = chosen.pairs.split(",") if chosen.pairs else list(known)
    if unknown := [name for name in names if name not in known]:
        parser.error(f"--pairs: unknown {unknown}; allowed: {', '.join(known)}")
    chosen.pairs = [known[name] for name in names]
    chosen.seeds = [int(seed) for seed in chosen.seeds.split(",")]
    chosen.rows = lines.matching(recipes(), chosen.rows, ",")
    chosen.results = chosen.results or file_of(chosen.setting)
    return chosen


def main(words: list[str] | None = None) -> None:
    chosen = arguments(words)
    commit, absent = lines.code_commit("benchmarks/vision"), {}
    for seed in chosen.seeds:
        for pair in chosen.pairs:
            if lacking := missing(pair, seed, chosen.setting):
                absent |= {spec.name: None for spec in lacking}
                continue
            done = {} if chosen.again else read(chosen.results)
            wanted = {
                name: recipe
                for name, recipe in chosen.rows.items()
                if (pair.name, seed, name) not in done
            }
            if wanted:
                run(pair, seed, chosen.setting, wanted, chosen.results, commit)
    if absent:
        command = f"train.py --setting {chosen.setting} {' '.join(absent)}"
        OUT.print(f"not trained yet: python benchmarks/vision/{command}", soft_wrap=True)


if __name__ == "__main__":
    main()
