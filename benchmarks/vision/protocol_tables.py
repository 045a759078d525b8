"""Print the protocol's results over seeds as Markdown: networks, the claim, every row.

python benchmarks/vision/protocol_tables.py
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev

from pairs import PAIRS, Pair, with_homogeneous
from recipes import recipes
from results import Key, Result, file_of, read

Results = Mapping[Key, Result]
Seeds = Mapping[int, float]
CLAIM = ("ensemble", "zip+bn", "zip+repair", "zip+refit", "select+refit", "zip+refit 1.5x")
NOTHING = "–"


def over_seeds(
    results: Results, pair: Pair, recipe: str, column: str = "joint"
) -> dict[int, float]:
    """One column of one row, by seed; seeds without that figure are left out."""
    found = {
        result.seed: getattr(result, column)
        for result in results.values()
        if (result.pair, result.recipe) == (pair.name, recipe)
    }
    return {seed: value for seed, value in sorted(found.items()) if value is not None}


def difference(first: Seeds, second: Seeds) -> dict[int, float]:
    """By seed, where both have it."""
    return {seed: first[seed] - second[seed] for seed in first if seed in second}


def cell(values: Seeds, sign: str = "") -> str:
    """Mean, and the sample standard deviation over seeds where there are at least two."""
    if not values:
        return NOTHING
    text = f"{mean(values.values()):{sign}.3f}"
    return text + (f" ± {stdev(values.values()):.3f}" if len(values) > 1 else "")


def markdown(head: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    rule = ["---"] * len(head)
    return "\n".join(f"| {' | '.join(line)} |" for line in (head, rule, *lines))


def networks(results: Results, pairs: Sequence[Pair]) -> str:
    """Each network's accuracy on its own classes, which says whether it was trained well."""
    found: dict[str, dict[int, float]] = {}
    parameters: dict[str, int] = {}
    for result in results.values():
        for pair in pairs:
            for index, letter in enumerate("AB"):
                if (result.pair, result.recipe) != (pair.name, f"{letter} alone"):
                    continue
                name = pair.specs(result.seed)[index].name.rpartition("/")[0]
                own = (result.first, result.second)[index]
                if own is not None:
                    found.setdefault(name, {})[result.seed] = own
                    parameters[name] = result.parameters
    lines = [
        (name, f"{parameters[name]:,}", ", ".join(map(str, sorted(seeds))), cell(seeds))
        for name, seeds in sorted(found.items())
    ]
    return markdown(("network", "parameters", "seeds", "own classes"), lines)


def claim(results: Results, pairs: Sequence[Pair], recipes: Sequence[str] = CLAIM) -> str:
    """Each heterogeneous pair beside the homogeneous one of its merged size."""
    lines = []
    for pair in pairs:
        for recipe in recipes:
            mine, beside = (over_seeds(results, each, recipe) for each in (pair, pair.beside))
            if not mine:
                continue
            tasks = [over_seeds(results, each, recipe, "mean") for each in (pair, pair.beside)]
            joint, per_task = difference(mine, beside), difference(*tasks)
            lines.append(
                (
                    f"{pair.name}: {pair.first} + {pair.second}",
                    recipe,
                    cell(mine),
                    cell(beside),
                    cell(joint, "+"),
                    cell(per_task, "+"),
                    ", ".join(map(str, joint)) or NOTHING,
                )
            )
    head = ("pair", "recipe", "different", "same shape", "joint", "per task", "seeds")
    return markdown(head, lines)


def everything(results: Results, pairs: Sequence[Pair], column: str = "joint") -> str:
    """Every row that any pair has, one column per pair."""
    shown = [p for p in with_homogeneous(list(pairs)) if over_seeds(results, p, "ensemble")]
    ran = list(dict.fromkeys(result.recipe for result in results.values()))
    known = [name for name in recipes() if name in ran]
    lines = [
        (name, *(cell(over_seeds(results, pair, name, column)) for pair in shown))
        for name in [*known, *(name for name in ran if name not in known)]
    ]
    return markdown(("recipe", *(pair.name for pair in shown)), lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--setting", choices=PAIRS, default="small")
    parser.add_argument("--results", type=Path, help="CSV file; by default in benchmarks/results")
    chosen = parser.parse_args()
    pairs = PAIRS[chosen.setting]
    results = read(chosen.results or file_of(chosen.setting))
    print("Networks\n", networks(results, with_homogeneous(pairs)), sep="\n")
    print(
        "\nThe claim: joint accuracy, and different minus same shape\n",
        claim(results, pairs),
        sep="\n",
    )
    print("\nJoint accuracy\n", everything(results, pairs), sep="\n")
    print("\nAccuracy within a half, mean of both\n", everything(results, pairs, "mean"), sep="\n")


if __name__ == "__main__":
    main()
