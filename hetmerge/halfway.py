"""How far the plan of a merge from disk has come, so that a stopped merge goes on from there."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from torch import Tensor

from hetmerge.maps import StoredMaps, store_maps, stored_maps
from hetmerge.snapshots import Tree, read_tree, remove_tree, write_tree

EVERY = 300.0  # seconds from one snapshot to the next: what a stop may cost
HALFWAY = "planning.safetensors"  # of a plan that is not finished
MAPS = "maps"  # the folder, beside the file, of dense maps that have been computed


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

    def store(self, space: int, maps: Mapping[int, Tensor]) -> StoredMaps:
        """Move the dense maps of a space out of memory.

        Raises:
            CheckpointError: they cannot be written.
        """
        return store_maps(self._file(space), maps)

    def stored(self, space: int) -> StoredMaps:
        """The dense maps of a space that an earlier run has stored."""
        return stored_maps(self._file(space))

    def _file(self, space: int) -> Path:
        return self.path.with_name(MAPS) / f"{space}.safetensors"

    def passed(self) -> None:
        """Everything that is kept fits together now: take a snapshot if the last one is old."""
        if time.monotonic() - self._last < EVERY:
            return
        write_tree(self.path, {name: part() for name, part in self._parts.items()})
        self._last = time.monotonic()


def remove_halfway(path: Path) -> None:
    """Remove a file of a :class:`Halfway`, and what lies beside it."""
    remove_tree(path)
    shutil.rmtree(path.with_name(MAPS), ignore_errors=True)
