"""The benchmark's table of results: one line per pair, seed and recipe, in a CSV file."""

from __future__ import annotations

import csv
import os
import subprocess
from dataclasses import asdict, dataclass, fields
from pathlib import Path

HERE = Path(__file__).resolve().parent
FOLDER = HERE.parent / "results"
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
    return FOLDER / ("llm.csv" if setting == "small" else f"llm-{setting}.csv")


def read(path: Path) -> dict[Key, Result]:
    """All lines of the file by pair, seed and recipe; none where there is no file."""
    if not path.exists():
        return {}
    kinds = {"seed": int, "parameters": int}
    kinds |= dict.fromkeys(("english", "code", "mean", "seconds"), float)
    with path.open(newline="", encoding="utf-8") as file:
        lines = [{k: kinds.get(k, str)(v) for k, v in x.items()} for x in csv.DictReader(file)]
    return {(result := Result(**line)).key: result for line in lines}


def add(path: Path, result: Result) -> None:
    """Put one line into the file, in place of an older one; the file is whole at any time."""
    results = read(path) | {result.key: result}
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(f".{os.getpid()}.partial")
    with partial.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [f.name for f in fields(Result)], lineterminator="\n")
        writer.writeheader()
        ordered = sorted(results.values(), key=lambda r: (r.pair, r.seed))
        writer.writerows(asdict(each) for each in ordered)
    partial.replace(path)


def code_commit() -> str:
    """The commit, marked where the code differs from it; results and documents do not count."""
    changed = _git("status", "--porcelain", "--", "hetmerge", "csrc", "kernels", "benchmarks/llm")
    return (_git("rev-parse", "--short=8", "HEAD") or "unknown") + ("-dirty" if changed else "")


def _git(*command: str) -> str:
    done = subprocess.run(
        ["git", *command], cwd=HERE.parents[1], capture_output=True, text=True, check=False
    )
    return done.stdout.strip()
