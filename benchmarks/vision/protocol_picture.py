"""Draw the protocol: each pair of different networks beside the pair of one shape.

python benchmarks/vision/protocol_picture.py docs/protocol.png
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from statistics import mean

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from pairs import PAIRS, Pair
from protocol_tables import Results, over_seeds
from results import file_of, read

ROWS = (
    "ensemble",
    "select+refit 1.5x",
    "zip+refit 1.5x",
    "select+refit 1.25x",
    "zip+refit 1.25x",
    "select+refit",
    "zip+refit",
    "permute+refit",
    "identity+refit",
    "zip+repair",
    "permute+repair",
    "zip+bn",
)
CONTROLS = {"head": ":", "blocks": "--"}  # the better of the two bodies, as a line
SIDES = (("different networks", "#d62728", -0.16), ("one shape twice", "#1f77b4", 0.16))
COLUMNS = 3


def panel(axis: Axes, results: Results, pair: Pair, rows: list[str]) -> None:
    """One pair: a dot per seed, a bar at the mean; lines are controls of the same pair."""
    for (label, colour, shift), each in zip(SIDES, (pair, pair.beside), strict=True):
        for place, recipe in enumerate(rows):
            values = list(over_seeds(results, each, recipe).values())
            if not values:
                continue
            y = place + shift
            axis.plot(values, [y] * len(values), "o", color=colour, alpha=0.6, markersize=4)
            axis.plot([mean(values)], [y], "|", color=colour, markersize=11, markeredgewidth=2.2)
        for control, style in CONTROLS.items():
            bodies = [over_seeds(results, each, f"{control} {letter}") for letter in "AB"]
            if all(bodies):
                best = max(mean(seeds.values()) for seeds in bodies)
                axis.axvline(best, color=colour, linestyle=style, linewidth=1, alpha=0.8)
        axis.plot([], [], "o", color=colour, label=label)
    seeds = len(over_seeds(results, pair, "ensemble"))
    title = f"{pair.name}: {pair.first} + {pair.second}\nbeside {pair.beside.name}, seeds: {seeds}"
    axis.set_title(title, fontsize=9)
    axis.grid(axis="x", alpha=0.3)


def draw(results: Results, pairs: list[Pair], path: Path) -> None:
    shown = [pair for pair in pairs if over_seeds(results, pair, "ensemble")]
    if not shown:
        raise SystemExit("no pair of different networks has results yet: run protocol.py first")
    ran = {result.recipe for result in results.values()}
    rows = [name for name in ROWS if name in ran]
    columns = min(COLUMNS, len(shown))
    lines = math.ceil(len(shown) / columns)
    figure, axes = plt.subplots(
        lines,
        columns,
        figsize=(2 + 3.6 * columns, 1.2 + 3.4 * lines),
        sharex=True,
        sharey=True,
        squeeze=False,
        layout="constrained",
    )
    for axis in axes.flat[len(shown) :]:
        axis.set_visible(False)
    for axis, pair in zip(axes.flat, shown, strict=False):
        panel(axis, results, pair, rows)
    axes[0][0].set_yticks(range(len(rows)), rows)
    for axis in axes.flat:
        axis.tick_params(labelsize=8, labelbottom=True)
    axes[0][0].set_ylim(len(rows) - 0.5, -0.5)
    for style, label in ((":", "best fitted head"), ("--", "best fitted head on all blocks")):
        axes[0][0].plot([], [], color="black", linestyle=style, label=label)
    figure.legend(*axes[0][0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    figure.suptitle(
        "Accuracy over all ten classes: a dot per seed, a bar at their mean", fontsize=11
    )
    figure.savefig(path, dpi=130)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("picture", type=Path)
    parser.add_argument("--setting", choices=PAIRS, default="small")
    parser.add_argument("--results", type=Path, help="CSV file; by default in benchmarks/results")
    chosen = parser.parse_args()
    results = read(chosen.results or file_of(chosen.setting))
    draw(results, PAIRS[chosen.setting], chosen.picture)


if __name__ == "__main__":
    main()
