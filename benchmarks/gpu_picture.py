"""Picture of the sweep: what each case attains, beside what the device can do at most.

python benchmarks/gpu_picture.py benchmarks/results/nvidia-h200.csv docs/roofline.png
"""

from __future__ import annotations

import csv
import sys
from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from rows import Roofs, Timing

OURS, BEST = "#1f6f8b", "#c9c9c9"


def draw(timings: Sequence[Timing], roofs: Roofs, device: str, path: Path) -> None:
    """Bars of our main implementations in TFLOP/s and GB/s, with the roof of each as a line.

    A case stands in the panel of the limit that its counted operations and bytes reach first. The
    grey bar behind is the fastest baseline.
    """
    panels: dict[str, list[tuple[Timing, float]]] = {"flops": [], "bytes": []}
    for timing in timings:
        if timing.implementation != "hetmerge" or not (timing.flops or timing.bytes):
            continue
        peak = roofs.flops.get(timing.dtype, roofs.flops["float32"])
        bound = timing.flops / peak > timing.bytes / roofs.bandwidth
        panels["flops" if bound else "bytes"].append((timing, peak if bound else roofs.bandwidth))
    most = max(len(shown) for shown in panels.values())
    figure, axes = plt.subplots(1, 2, figsize=(15, 1.6 + 0.42 * max(most, 3)))
    for axis, (count, shown), unit, scale in zip(
        axes, panels.items(), ("TFLOP/s", "GB/s"), (1e12, 1e9), strict=True
    ):
        axis.set_title({"flops": "limited by operations", "bytes": "limited by memory"}[count])
        for k, (timing, roof) in enumerate(shown):
            others = [t for t in timings if t.case == timing.case
                      and not t.ours and "copy" not in t.implementation]  # fmt: skip
            amount = getattr(timing, count)
            if others:
                fastest = min(t.p50 for t in others)
                axis.barh(k, amount / fastest * 1e3 / scale, height=0.8, color=BEST)
            reached = amount / timing.p50 * 1e3
            axis.barh(k, reached / scale, height=0.45, color=OURS)
            axis.plot([roof / scale] * 2, [k - 0.4, k + 0.4], color="black", linewidth=2)
            axis.text(roof / scale, k, f"  {reached / roof:.0%}", va="center", fontsize=9)
        axis.set_yticks(range(len(shown)), [timing.case for timing, _ in shown], fontsize=9)
        axis.set_xlabel(unit)
        axis.invert_yaxis()
        axis.margins(x=0.12)
        axis.spines[["top", "right"]].set_visible(False)
    figure.suptitle(f"{device}: hetmerge (blue), fastest baseline (grey), roof (line)")
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def read(table: Path) -> tuple[list[Timing], Roofs, str]:
    """The timings of a results table, and the roofs that its fractions are of."""
    with table.open(newline="") as file:
        lines = list(csv.DictReader(file))
    lines.sort(key=lambda line: [int(n) if n.isdigit() else n for n in line["case"].split()])
    timings, flops, bandwidth = [], {"float32": 0.0}, 0.0
    for line in lines:
        ms, share = float(line["ms_p50"]), float(line["roof_fraction"])
        rates = float(line["tflop_per_s"] or 0) * 1e12, float(line["gb_per_s"] or 0) * 1e9
        dtype = "bfloat16" if "bfloat16" in line["case"] else "float32"
        # The larger share of the two limits is the fraction, so no quotient is above its roof.
        flops[dtype] = max(flops.get(dtype, 0.0), rates[0] / share)
        bandwidth = max(bandwidth, rates[1] / share)
        counted = (rate * ms / 1e3 for rate in rates)
        timings.append(Timing(line["case"], line["implementation"], ms, ms, ms, *counted, dtype))
        for baseline in filter(None, line["ratios"].split("; ")):
            name, ratio = baseline.rsplit(" ", 1)
            timings.append(Timing(line["case"], name, *[ms * float(ratio)] * 3))
    return timings, Roofs(bandwidth, flops), lines[0]["device"]


if __name__ == "__main__":
    draw(*read(Path(sys.argv[1])), Path(sys.argv[2]))
