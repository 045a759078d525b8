"""How far the plan of a merge from disk has come, so that a stopped merge goes on from there."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from hetmerge.snapshots import Tree, read_tree, write_tree

EVERY = 300.0  # seconds from one snapshot to the next: what a stop may cost


class Halfway:
    """A file with what planning has finished, replaced every few minutes.

    Without room for it on the disk there is none, and a stop costs more.

    Args:
        path: of the file; if an earlier run has left it, planning goes on from there.

    Raises:
        CheckpointError: the file is damaged, or of another version.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._known: dict[str, Tree] = read_tree(path) if path.is_file() else {}
        self._parts: dict[str, Callable[[], Tree]] = {}
        self._last = time.monotonic()

    def take(self, name: str) -> Tree:
        """What an earlier run knew about one part of the work; None without one. Only once."""
        return self._known.pop(name, None)

    def keep(self, name: str, part: Callable[[], Tree]) -> None:
        """From now on a snapshot holds what `part` returns."""
        self._parts[name] = part

    def passed(self) -> None:
        """Everything that is kept fits together now: take a snapshot if the last one is old."""
        if time.monotonic() - self._last < EVERY:
            return
        write_tree(self.path, {name: part() for name, part in self._parts.items()})
        self._last = time.monotonic()
