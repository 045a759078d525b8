"""The results as tables: means over seeds, and paired differences with their standard errors.

python benchmarks/llm/lm_tables.py
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path

from lm_pairs import PAIRS
from lm_recipes import recipes
from lm_results import Key, Result, file_of, read

# What must hold, in bits per byte: (pairs, better, worse, by how much); several worse: the best.
CLAIMS = [
    ("specialists same lineage", ["pca+refit"], ["pca"], 0.5),
    ("specialists same lineage", ["pca+refit"], ["permute+refit"], 0.1),
    ("specialists same lineage", ["pca+refit"], ["random+refit"], 0.1),
    ("specialists", ["pca+refit"], ["head A", "head B"], 0.0),
    ("specialists same lineage", ["pca+refit"], ["blocks A", "blocks B"], 0.1),
    ("lineage", ["pca+refit"], ["A alone", "B alone"], 0.0),
    ("specialists same lineage", ["pca+refit budget"], ["pca+refit"], 0.0),
    ("specialists same lineage", ["pca+refit budget"], ["permute+refit"], 0.1),
    ("specialists same lineage", ["pca+refit budget"], ["blocks A", "blocks B"], 0.1),
    ("specialists same lineage", ["pca+refit 1.25x budget"], ["pca+refit 1.25x"], 0.0),
    ("specialists same lineage", ["pca+refit 1.5x budget"], ["pca+refit 1.5x"], 0.0),
]


def table(results: Mapping[Key, Result], pair: str) -> str:
    """All rows of one pair, seeds averaged."""
    lines = ["| row | English | code | mean | parameters | seeds |", "|---|---|---|---|---|---|"]
    for name in recipes():
        found = [r for (p, _, n), r in results.items() if (p, n) == (pair, name)]
        if found:
            columns = [mean([getattr(r, k) for r in found]) for k in ("english", "code", "mean")]
            shown = " | ".join(f"{x:.3f}" for x in columns)
            count = round(mean([r.parameters for r in found]))
            lines.append(f"| {name} | {shown} | {count:,} | {len(found)} |")
    return "\n".join(lines)


def claims(results: Mapping[Key, Result]) -> str:
    """Differences that were asked for, and whether they are there."""
    lines = ["| pair | difference | bits | needed | seeds |", "|---|---|---|---|---|"]
    for pairs, better, worse, needed in CLAIMS:
        for pair in pairs.split():
            gaps = paired(results, pair, better, worse)
            if gaps:
                title = f"{' / '.join(worse)} - {' / '.join(better)}"
                error = f" ± {standard_error(gaps):.3f}" if len(gaps) > 1 else ""
                verdict = "reached" if mean(gaps) >= needed else "**not reached**"
                shown = f"{mean(gaps):+.3f}{error}"
                lines.append(
                    f"| {pair} | {title} | {shown} | {needed:+.1f}: {verdict} | {len(gaps)} |"
                )
    return "\n".join(lines)


def paired(
    results: Mapping[Key, Result], pair: str, better: Sequence[str], worse: Sequence[str]
) -> list[float]:
    """Per seed that has all rows, the best of `worse` less the best of `better`."""
    found = []
    for seed in sorted({seed for p, seed, _ in results if p == pair}):
        sides = [[results.get((pair, seed, n)) for n in names] for names in (better, worse)]
        if all(r is not None for side in sides for r in side):
            low, high = (min(r.mean for r in side if r is not None) for side in sides)
            found.append(high - low)
    return found


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def standard_error(values: Sequence[float]) -> float:
    centre = mean(values)
    variance = sum((x - centre) ** 2 for x in values) / (len(values) - 1)
    return float((variance / len(values)) ** 0.5)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--results", type=Path, default=file_of("small"))
    results = read(parser.parse_args().results)
    for pair in PAIRS:
        if any(name == pair.name for name, _, _ in results):
            print(f"### {pair.name}: {pair.title}\n\n{table(results, pair.name)}\n")
    print(claims(results))


if __name__ == "__main__":
    main()
