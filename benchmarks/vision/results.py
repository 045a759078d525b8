"""The protocol's table of results: one line per pair, seed and recipe, in a CSV file."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

from measure import Row
from pairs import Pair

sys.path.append(str(Path(__file__).resolve().parents[1]))  # what all benchmarks share

import lines  # noqa: E402

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
    return lines.FOLDER / ("vision.csv" if setting == "small" else f"vision-{setting}.csv")


def read(path: Path) -> dict[Key, Result]:
    """All lines of the file by pair, seed and recipe; none where there is no file."""
    return lines.read(path, _parse)


def add(path: Path, result: Result) -> None:
    """Put one line into the file, in place of an older one."""
    lines.write(path, read(path) | {result.key: result}, lambda r: (r.kind, r.pair, r.seed))


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
