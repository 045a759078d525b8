"""What tables of results share: CSV files of lines by pair, seed and recipe; rows by pattern."""

from __future__ import annotations

import csv
import os
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import asdict, fields
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, TypeVar

ROOT = Path(__file__).resolve().parents[1]
FOLDER = Path(__file__).resolve().parent / "results"
T = TypeVar("T")


def read(path: Path, parse: Callable[[dict[str, str]], T]) -> dict[Any, T]:
    """All lines of the file by their `key`; none where there is no file."""
    if not path.exists():
        return {}
    with path.open(newline="", encoding="utf-8") as file:
        found: list[Any] = [parse(line) for line in csv.DictReader(file)]
    return {result.key: result for result in found}


def write(path: Path, results: Mapping[Any, Any], order: Callable[[Any], Any]) -> None:
    """All lines, sorted; the file is whole at any time, and lines of equal order stay as given."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(f".{os.getpid()}.partial")
    lines = sorted(results.values(), key=order)
    with partial.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [f.name for f in fields(lines[0])], lineterminator="\n")
        writer.writeheader()
        writer.writerows(asdict(line) for line in lines)
    partial.replace(path)


def code_commit(folder: str) -> str:
    """The commit, marked where the code differs from it; results and documents do not count.

    Args:
        folder: of the benchmark, beside the package.
    """
    changed = _git("status", "--porcelain", "--", "hetmerge", "csrc", "kernels", folder)
    return (_git("rev-parse", "--short=8", "HEAD") or "unknown") + ("-dirty" if changed else "")


def matching(rows: Mapping[str, T], patterns: str, separator: str) -> dict[str, T]:
    """The rows that one of the patterns names, in the order of the table."""
    wanted = [pattern for pattern in patterns.split(separator) if pattern]
    for pattern in wanted:
        if not any(fnmatchcase(name, pattern) for name in rows):
            known = f"{separator} ".join(rows)
            raise SystemExit(f"--rows: nothing matches {pattern!r}; rows are {known}")
    return {n: row for n, row in rows.items() if any(fnmatchcase(n, p) for p in wanted)}


def _git(*command: str) -> str:
    done = subprocess.run(["git", *command], cwd=ROOT, capture_output=True, text=True, check=False)
    return done.stdout.strip()
