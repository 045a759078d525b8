"""Time against size for every operation, on one log-log picture with the fitted slopes.

python benchmarks/growth.py docs/growth.png --rows benchmarks/results/growth-NAME.csv
"""

from __future__ import annotations

import argparse
import csv
import math
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch

from hetmerge.ops import Moments, align_depth, cka, linear_sum_assignment, project, zip_match

Case = tuple[int, Callable[[], object]]


def correlations(total: int) -> torch.Tensor:
    rng = torch.Generator().manual_seed(total)
    mix = torch.randn(total // 4, 1024, generator=rng)
    x = torch.randn(total, total // 4, generator=rng) @ mix
    corr = torch.corrcoef(x)
    return corr.triu(1) + corr.triu(1).T


def moments() -> Iterator[Case]:
    for total in (256, 512, 1024, 2048, 4096):
        features = [torch.randn(4096, total // 2) for _ in range(2)]
        yield total, lambda f=features, t=total: Moments([t // 2, t // 2]).update(*f)


def zips() -> Iterator[Case]:
    for total in (256, 512, 1024, 2048, 4096, 8192):
        corr, sizes = correlations(total), [total // 2, total // 2]
        yield total, lambda c=corr, s=sizes: zip_match(c, s)


def assignments() -> Iterator[Case]:
    for n in (128, 256, 512, 1024, 2048):
        score = correlations(2 * n)[:n, n:].contiguous()
        yield n, lambda s=score: linear_sum_assignment(s)


def projects() -> Iterator[Case]:
    for n in (256, 512, 1024, 2048, 4096):
        weights = [torch.randn(n, n) for _ in range(2)]
        labels = [torch.arange(n), torch.randperm(n)]
        yield n, lambda w=weights, x=labels, k=n: project(w, x, x, k, k)


def ckas() -> Iterator[Case]:
    for layers in (4, 8, 16, 32, 64):
        features = [torch.randn(256, 512) for _ in range(2 * layers)]
        yield layers, lambda f=features, k=layers: cka(f[:k], f[k:])


def alignments() -> Iterator[Case]:
    for layers in (16, 32, 64, 128, 256):
        table = torch.rand(layers, layers // 2)
        yield layers, lambda t=table: align_depth(t)


OPS = {
    "moments": moments,
    "zip": zips,
    "assignment": assignments,
    "project": projects,
    "cka": ckas,
    "align_depth": alignments,
}
AXES = {"cka": "layers per model", "align_depth": "layers of the deeper model"}


def seconds(function: Callable[[], object]) -> float:
    """Median of five runs, or fewer where one takes seconds."""
    function()
    times: list[float] = []
    while len(times) < 5 and sum(times) < 5:
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return sorted(times)[len(times) // 2]


def slope(points: list[tuple[int, float]]) -> float:
    """Exponent between the two largest sizes: small ones are dominated by fixed costs."""
    (a, s), (b, t) = points[-2:]
    return math.log(t / s) / math.log(b / a)


def draw(measured: dict[str, list[tuple[int, float]]], path: Path) -> None:
    figure, axis = plt.subplots(figsize=(7.5, 6), layout="constrained")
    for name, points in measured.items():
        unit = AXES.get(name, "features")
        label = f"{name} ({unit}): slope {slope(points):.2f}"
        axis.loglog(*zip(*points, strict=True), marker="o", markersize=4, label=label)
    axis.set(xlabel="size", ylabel="seconds", title="Time against size")
    axis.grid(True, which="major", alpha=0.3)
    figure.legend(loc="outside lower center", ncols=2, fontsize=8)
    figure.savefig(path, dpi=130)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("picture", type=Path)
    parser.add_argument("--rows", type=Path, required=True, help="CSV of the points")
    options = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(int(os.environ.get("HETMERGE_BENCH_THREADS", os.cpu_count() or 1)))
    measured = {
        name: [(size, seconds(function)) for size, function in cases()]
        for name, cases in OPS.items()
    }
    draw(measured, options.picture)
    with options.rows.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("op", "size", "seconds", "slope of the last two"))
        for name, points in measured.items():
            for size, spent in points:
                writer.writerow((name, size, f"{spent:.4g}", f"{slope(points):.2f}"))


if __name__ == "__main__":
    main()
