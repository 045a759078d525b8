"""The protocol's table of results: one line per pair, seed and recipe, in a CSV file."""

from __future__ import annotations

import csv
import os
import subprocess
from dataclasses import asdict, dataclass, fields
from datetime import datetime, timezone
from pathlib import Path

from measure import Row
from pairs import Pair

HERE = Path(__file__).resolve().parent
FOLDER = HERE.parent / "results"
Key = tuple[str, int, str]


@dataclass(frozen=True)
class Result:
    """One line. Accuracies in [0, 1]: over ten classes, within each half, their mean."""

    pair: str
    kind: str
    seed: int
    recipe: str
    joint: float
    first: float | None
    second: float | None
    mean: float | None
    parameters: int
    seconds: float
    date: str
    commit: str

    @property
    def key(self) -> Key:
        return self.pair, self.seed, self.recipe


def result_of(line: Row, pair: Pair, seed: int, commit: str) -> Result:
    """A measured row of one pair and seed, dated today."""
    return Result(
        pair=pair.name,
        kind=pair.kind,
        seed=seed,
        recipe=line.name,
        joint=line.accuracy,
        first=line.halves[0],
        second=line.halves[1],
        mean=None if line.mean is None else round(line.mean, 4),
        parameters=line.parameters,
        seconds=line.seconds,
        date=datetime.now(timezone.utc).date().isoformat(),
        commit=commit,
    )


def file_of(setting: str) -> Path:
    return FOLDER / ("vision.csv" if setting == "small" else f"vision-{setting}.csv")


def read(path: Path) -> dict[Key, Result]:
    """All lines of the file by pair, seed and recipe; none where there is no file."""
    if not path.exists():
        return {}
    with path.open(newline="", encoding="utf-8") as file:
        found = [_parse(line) for line in csv.DictReader(file)]
    return {result.key: result for result in found}


def add(path: Path, result: Result) -> None:
    """Put one line into the file, in place of an older one; the file is whole at any time."""
    results = read(path) | {result.key: result}
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(f".{os.getpid()}.partial")
    with partial.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [f.name for f in fields(Result)], lineterminator="\n")
        writer.writeheader()
        # A stable sort: the recipes of one pair and seed stay in the order in which they came.
        ordered = sorted(results.values(), key=lambda r: (r.kind, r.pair, r.seed))
        writer.writerows(asdict(each) for each in ordered)
    partial.replace(path)


def code_commit() -> str:
    """The commit, marked where the code differs from it; results and documents do not count."""
    changed = _git(
        "status", "--porcelain", "--", "hetmerge", "csrc", "kernels", "benchmarks/vision"
    )
    return (_git("rev-parse", "--short=8", "HEAD") or "unknown") + ("-dirty" if changed else "")


def _git(*command: str) -> str:
    root = HERE.parents[1]
    done = subprocess.run(["git", *command], cwd=root, capture_output=True, text=True, check=False)
    return done.stdout.strip()


def _parse(line: dict[str, str]) -> Result:
    def number(name: str) -> float | None:
        return float(line[name]) if line[name] else None

    return Result(
        pair=line["pair"],
        kind=line["kind"],
        seed=int(line["seed"]),
        recipe=line["recipe"],
        joint=float(line["joint"]),
        first=number("first"),
        second=number("second"),
        mean=number("mean"),
        parameters=int(line["parameters"]),
        seconds=float(line["seconds"]),
        date=line["date"],
        commit=line["commit"],
    )
