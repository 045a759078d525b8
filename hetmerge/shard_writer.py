"""Shards of a checkpoint written tensor by tensor, in any order, and continued after a stop."""

from __future__ import annotations

import errno
import json
import math
import os
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from hetmerge.casting import cast
from hetmerge.errors import CheckpointError
from hetmerge.shards import DTYPES, INDEX, WHOLE, Stored, read_header

JOURNAL = "finished.jsonl"  # names of the tensors whose bytes are all there
_NAMES = {dtype: name for name, dtype in DTYPES.items()}


class ShardWriter:
    """Writes `model.safetensors`, or `model-%05d-of-%05d.safetensors` and an index.

    The files have their full size from the start, so a disk that is too small is noticed before
    any work is done. A tensor counts as finished once its bytes are on the disk and its name is in
    the journal; a writer that is made again for the same folder knows which those are.

    Args:
        folder: exists.
        like: name -> a tensor of its shape and type (on the meta device), in the order of the
            files.
        limit: bytes of a shard, at most, unless one tensor alone is larger.

    Raises:
        CheckpointError: too little space, or the folder holds shards of other tensors.
    """

    def __init__(self, folder: Path, like: Mapping[str, Tensor], limit: int) -> None:
        self.folder, self.like, self.limit = folder, dict(like), limit
        self.files = _assign(self.like, limit)
        self.places: dict[str, Stored] = {}
        self._check_space()
        for file, names in self.files.items():
            self._prepare(folder / file, names)
        self.finished = self._journal()

    def write(self, name: str, tensor: Tensor, rows: range | None = None) -> None:
        """Put a tensor, or some of its rows, where it belongs.

        Raises:
            CheckpointError: a number is too large for the stored type, or the file cannot be
                written.
        """
        place = self.places[name]
        stored = cast(name, tensor.detach(), self.like[name].dtype).cpu().contiguous()
        wanted = place.shape if rows is None else (len(rows), *place.shape[1:])
        assert tuple(stored.shape) == tuple(wanted), (name, stored.shape, wanted)
        offset = place.start
        if rows is not None:
            offset += rows.start * (place.stop - place.start) // place.shape[0]
        try:
            with place.path.open("r+b") as file:
                file.seek(offset)
                file.write(bytes_of(stored))
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise _unwritable(place.path, error) from error

    def finish(self, names: Iterable[str]) -> None:
        """All bytes of these tensors are there; either all of them count as finished or none."""
        found = sorted(names)
        try:
            with (self.folder / JOURNAL).open("a", encoding="utf-8") as file:
                file.write(json.dumps(found) + "\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise _unwritable(self.folder / JOURNAL, error) from error
        self.finished.update(found)

    def close(self) -> None:
        """Write the index; every tensor must be finished. The journal stays until all is done."""
        missing = [name for name in self.like if name not in self.finished]
        assert not missing, missing[:3]
        if len(self.files) > 1:
            table = {name: file for file, names in self.files.items() for name in names}
            total = sum(place.stop - place.start for place in self.places.values())
            body = {"metadata": {"total_size": total}, "weight_map": dict(sorted(table.items()))}
            (self.folder / INDEX).write_text(json.dumps(body, indent=2) + "\n", encoding="utf-8")

    def again(self, folder: Path) -> ShardWriter:
        """A writer of the same files in another folder."""
        return ShardWriter(folder, self.like, self.limit)

    def _check_space(self) -> None:
        free = shutil.disk_usage(self.folder).free
        here = sum(f.stat().st_size for n in self.files if (f := self.folder / n).is_file())
        needed = sum(map(_size, self.like.values())) - here
        if needed > free:
            raise CheckpointError(
                f"{self.folder.parent}: the result needs {needed / 1e9:.2f} GB, "
                f"{free / 1e9:.2f} GB are free"
            )

    def _prepare(self, path: Path, names: list[str]) -> None:
        mine = {name: self.like[name] for name in names}
        header = header_of(mine, {"format": "pt"})
        size = len(header) + sum(map(_size, mine.values()))
        try:
            if not path.exists():
                with path.open("wb") as file:
                    file.write(header)
                    file.flush()
                    _reserve(file.fileno(), size)
        except OSError as error:
            path.unlink(missing_ok=True)
            raise _unwritable(path, error) from error
        with path.open("rb") as file:
            if file.read(len(header)) != header or path.stat().st_size != size:
                raise CheckpointError(f"{path}: holds other tensors; remove {self.folder}")
        self.places.update(read_header(path))

    def _journal(self) -> set[str]:
        path = self.folder / JOURNAL
        if not path.is_file():
            return set()
        lines = path.read_text(encoding="utf-8").split("\n")
        return {name for line in lines[:-1] for name in json.loads(line)}  # an open end was cut off


def _reserve(file: int, size: int) -> None:
    """Give a file its size, and its blocks where the system can."""
    try:
        os.posix_fallocate(file, 0, size)
    except AttributeError:
        os.ftruncate(file, size)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP):
            raise
        os.ftruncate(file, size)


def _assign(like: Mapping[str, Tensor], limit: int) -> dict[str, list[str]]:
    """File name -> its tensors, in order."""
    groups: list[list[str]] = [[]]
    used = 0
    for name, tensor in like.items():
        if groups[-1] and used + _size(tensor) > limit:
            groups.append([])
            used = 0
        groups[-1].append(name)
        used += _size(tensor)
    if len(groups) == 1:
        return {WHOLE: groups[0]}
    return {
        f"model-{i:05d}-of-{len(groups):05d}.safetensors": names
        for i, names in enumerate(groups, 1)
    }


def header_of(like: Mapping[str, Tensor | Stored], metadata: Mapping[str, str]) -> bytes:
    """The start of a safetensors file: the length of a JSON table, and the table."""
    table: dict[str, object] = {"__metadata__": dict(metadata)}
    start = 0
    for name, tensor in like.items():
        stop = start + math.prod(tensor.shape) * tensor.dtype.itemsize
        table[name] = {
            "dtype": _NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [start, stop],
        }
        start = stop
    text = json.dumps(table, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def bytes_of(tensor: Tensor) -> memoryview:
    """Its bytes, of a contiguous tensor on the CPU, without a copy."""
    found: memoryview = tensor.reshape(-1).view(torch.uint8).numpy().data
    return found


def _size(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _unwritable(path: Path, error: OSError) -> CheckpointError:
    return CheckpointError(f"{path}: cannot be written ({error.strerror or error})")
