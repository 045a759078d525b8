"""The benchmark's table of results: one line per pair, seed and recipe, in a CSV file."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1]))  # what all benchmarks share

import lines  # noqa: E402

Key = tuple[str, int, str]


@dataclass(frozen=True)
class Result:
    """One line. Bits per byte on each domain and their mean."""

    pair: str
    seed: int
    recipe: str
    english: float
    code: float
    mean: float
    parameters: int
    seconds: float
    date: str
    commit: str

    @property
    def key(self) -> Key:
        return self.pair, self.seed, self.recipe


def file_of(setting: str) -> Path:
    return lines.FOLDER / ("llm.csv" if setting == "small" else f"llm-{setting}.csv")


def read(path: Path) -> dict[Key, Result]:
    """All lines of the file by pair, seed and recipe; none where there is no file."""
    return lines.read(path, _parse)


def add(path: Path, result: Result) -> None:
    """Put one line into the file, in place of an older one."""
    lines.write(path, read(path) | {result.key: result}, lambda r: (r.pair, r.seed))


def _parse(line: dict[str, str]) -> Result:
    kinds = {"seed": int, "parameters": int}
    kinds |= dict.fromkeys(("english", "code", "mean", "seconds"), float)
    return Result(**{name: kinds.get(name, str)(value) for name, value in line.items()})
