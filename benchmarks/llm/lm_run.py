"""Merge small Llamas of different depth and width, with every control, over seeds.

HETMERGE_DATA=... python benchmarks/llm/lm_run.py                        # whatever is trained
HETMERGE_DATA=... python benchmarks/llm/lm_run.py --pairs specialists --seeds 0 --rows 'head*;pca*'

Lines that the results file has already are not run again, unless --again is given.
"""

from __future__ import annotations

import argparse
from datetime import datetime, timezone
from pathlib import Path

from lm_pairs import PAIRS
from lm_recipes import SCALES, Bench, recipes
from lm_results import Result, add, file_of, lines, read
from rich.console import Console

OUT = Console()


def arguments(words: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--setting", choices=SCALES, default="small")
    parser.add_argument("--pairs", default=",".join(pair.name for pair in PAIRS))
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--rows", default="*", help="semicolon-separated names or patterns")
    parser.add_argument("--again", action="store_true", help="also run what the file has already")
    parser.add_argument("--results", type=Path, help="CSV file; by default in benchmarks/results")
    chosen = parser.parse_args(words)
    known = {pair.name: pair for pair in PAIRS}
    if unknown := [name for name in chosen.pairs.split(",") if name not in known]:
        parser.error(f"--pairs: unknown {unknown}; allowed: {', '.join(known)}")
    chosen.pairs = [known[name] for name in chosen.pairs.split(",")]
    chosen.seeds = [int(seed) for seed in chosen.seeds.split(",")]
    chosen.rows = lines.matching(recipes(), chosen.rows, ";")
    chosen.results = chosen.results or file_of(chosen.setting)
    return chosen


def main(words: list[str] | None = None) -> None:
    chosen = arguments(words)
    commit = lines.code_commit("benchmarks/llm")
    for seed in chosen.seeds:
        for pair in chosen.pairs:
            absent = [s.name for s in pair.specs(seed) if not s.path(chosen.setting).exists()]
            done = {} if chosen.again else read(chosen.results)
            wanted = {n: r for n, r in chosen.rows.items() if (pair.name, seed, n) not in done}
            if absent:
                OUT.print(f"{pair.name}, seed {seed}: not trained yet: {', '.join(absent)}")
            elif wanted:
                run(Bench(pair, seed, chosen.setting), pair.name, seed, wanted, chosen, commit)


def run(
    bench: Bench, pair: str, seed: int, wanted: dict, chosen: argparse.Namespace, commit: str
) -> None:
    """Make and measure the wanted rows of one pair; every line is kept as it comes."""
    for name, made, found in bench.rows(wanted):
        english, code = (round(x, 4) for x in found.domains)
        today = datetime.now(timezone.utc).date().isoformat()
        mean, seconds = round(found.mean, 4), round(made.seconds, 1)
        counted = (made.parameters, seconds, today, commit)
        add(chosen.results, Result(pair, seed, name, english, code, mean, *counted))
        OUT.print(f"{pair}, seed {seed}, {name}: {mean:.3f}  {seconds:.0f} s", highlight=False)


if __name__ == "__main__":
    main()
