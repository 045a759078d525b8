"""Where the tensors of a checkpoint folder are, by headers and index alone."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hetmerge.errors import CheckpointError

WHOLE, INDEX = "model.safetensors", "model.safetensors.index.json"
PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".th", ".pkl")
DTYPES = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I16": torch.int16,
    "U16": torch.uint16,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I32": torch.int32,
    "U32": torch.uint32,
    "F32": torch.float32,
    "I64": torch.int64,
    "U64": torch.uint64,
    "F64": torch.float64,
}
_LONGEST_HEADER = 100_000_000  # what the format allows


@dataclass(frozen=True)
class Stored:
    """One tensor on disk.

    Attributes:
        path: the shard.
        dtype: of its numbers, as stored.
        shape: its sizes.
        start, stop: its bytes in the shard, counted from the start of the file; row-major.
        twin: name of a tensor that begins as these bytes and is changed apart from the one that
            they are stored for.
    """

    path: Path
    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    stop: int
    twin: str = ""

    def pieces(self) -> Iterator[Stored]:
        """What it is read from."""
        yield self

    def part(self, rows: range) -> Stored:
        """Consecutive rows as a tensor by itself."""
        size = (self.stop - self.start) // self.shape[0]
        return replace(
            self,
            shape=(len(rows), *self.shape[1:]),
            start=self.start + rows.start * size,
            stop=self.start + rows.stop * size,
        )

    def read(self, rows: Tensor | None = None) -> Tensor:
        """The tensor, or some of its rows: int64 [n].

        Copied, not mapped: what is mapped counts as memory of this process for as long as it is.

        Raises:
            CheckpointError: the file cannot be read, or has become shorter than it was.
        """
        size = self.stop - self.start
        try:
            if rows is None:
                raw = np.fromfile(self.path, np.uint8, size, offset=self.start)
            else:
                lines = (self.shape[0], size // self.shape[0])
                raw = np.memmap(self.path, np.uint8, "r", self.start, lines)[rows.cpu().numpy()]
        except (OSError, ValueError) as error:  # a map longer than its file is a ValueError
            raise CheckpointError(f"{self.path}: cannot be read ({error})") from error
        if rows is None and raw.nbytes != size:
            raise CheckpointError(f"{self.path}: became shorter while it was read")
        count = self.shape[:1] if rows is None else (len(rows),)
        shape = (*count, *self.shape[1:])  # none for a number by itself
        return torch.from_numpy(raw.reshape(-1)).view(self.dtype).reshape(shape)


def shards_of(folder: str | Path) -> dict[str, Path]:
    """Tensor name -> the shard that holds it; see :func:`stored_tensors`."""
    return {name: stored.path for name, stored in stored_tensors(folder).items()}


def stored_tensors(folder: str | Path) -> dict[str, Stored]:
    """Every tensor of a checkpoint folder; reads the headers of its shards and the index.

    The weights are `model.safetensors`, or the shards that `model.safetensors.index.json` names, or
    the folder's only .safetensors file.

    Raises:
        CheckpointError: no or several candidates, only pickles, an index that is damaged, leaves
            the folder or disagrees with the shards, a shard that is missing, cut short or damaged.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: no such directory")
    if not (folder / WHOLE).is_file() and (folder / INDEX).is_file():
        return _indexed(folder)
    return read_header(folder / WHOLE if (folder / WHOLE).is_file() else _only_file(folder))


def read_header(path: Path) -> dict[str, Stored]:
    """The tensors of one .safetensors file, by name.

    Raises:
        CheckpointError: missing, cut short, damaged, or a type of numbers that torch lacks.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            start = file.read(8)
            length = int.from_bytes(start, "little")
            if start == b"version ":
                raise CheckpointError(
                    f"{path}: is a Git LFS pointer, not the file it stands for; run `git lfs pull`"
                )
            if len(start) < 8 or not 2 <= length <= min(size - 8, _LONGEST_HEADER):
                raise CheckpointError(f"{path}: cut short, or not a safetensors file")
            header = json.loads(file.read(length))
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: no such file") from error
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror or error})") from error
    except ValueError as error:
        raise CheckpointError(f"{path}: damaged header ({error})") from error
    if not isinstance(header, dict):
        raise CheckpointError(f"{path}: damaged header (not a mapping of tensors)")
    header.pop("__metadata__", None)
    found = {name: _stored(path, name, entry, 8 + length) for name, entry in header.items()}
    end = max((stored.stop for stored in found.values()), default=8 + length)
    if end != size:
        raise CheckpointError(
            f"{path}: has {size:,} bytes, its header speaks of {end:,}; it was cut short or damaged"
        )
    return found


def _stored(path: Path, name: str, entry: Any, base: int) -> Stored:
    try:
        dtype, shape = DTYPES.get(entry["dtype"]), tuple(entry["shape"])
        start, stop = entry["data_offsets"]
        whole = all(type(n) is int and n >= 0 for n in (*shape, start, stop))
    except (TypeError, KeyError, ValueError) as error:
        raise CheckpointError(f"{path}: tensor {name!r} has a damaged header entry") from error
    if dtype is None:
        raise CheckpointError(
            f"{path}: tensor {name!r} is stored as {entry['dtype']!r}; allowed: {', '.join(DTYPES)}"
        )
    if not whole or stop - start != prod(shape) * dtype.itemsize:
        raise CheckpointError(f"{path}: tensor {name!r} has a damaged header entry")
    return Stored(path, dtype, shape, base + start, base + stop)


def _indexed(folder: Path) -> dict[str, Stored]:
    wanted = index_of(folder)
    names = sorted(set(wanted.values()))
    if missing := [name for name in names if not (folder / name).is_file()]:
        raise CheckpointError(
            f"{folder}: {missing[0]} is missing ({len(missing)} of {len(names)} shards that "
            f"{INDEX} names); fetch the checkpoint again"
        )
    found: dict[str, Stored] = {}
    for file in names:
        for name, stored in read_header(folder / file).items():
            if wanted.get(name) != file:
                said = f"in {wanted[name]}" if name in wanted else "nowhere"
                raise CheckpointError(f"{folder}: {INDEX} has {name!r} {said}, but {file} holds it")
            found[name] = stored
    if lost := next((name for name in wanted if name not in found), None):
        raise CheckpointError(
            f"{folder}: {INDEX} has {lost!r} in {wanted[lost]}, which does not hold it"
        )
    return found


def index_of(folder: Path) -> Mapping[str, str]:
    """Tensor name -> name of the shard, as the folder's index says.

    Raises:
        CheckpointError: it is damaged, or leaves the folder.
    """
    path = folder / INDEX
    try:
        wanted = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
        sound = all(isinstance(text, str) for item in wanted.items() for text in item)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror or error})") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path}: damaged; expected JSON with a weight_map") from error
    if not sound or not wanted:
        raise CheckpointError(f"{path}: damaged; expected a weight_map of tensor name to file name")
    for name in wanted.values():
        # Judged by the name alone: in the hub's cache shards are links to files elsewhere.
        posix, windows = PurePosixPath(name), PureWindowsPath(name)
        if posix.is_absolute() or windows.anchor or ".." in (*posix.parts, *windows.parts):
            raise CheckpointError(f"{path}: names {name!r}, which leaves the folder")
    result: Mapping[str, str] = wanted
    return result


def _only_file(folder: Path) -> Path:
    files = sorted(folder.glob("*.safetensors"))
    if len(files) == 1:
        return files[0]
    if files:
        raise CheckpointError(
            f"{folder}: holds {len(files)} .safetensors files and neither {WHOLE} nor {INDEX}, "
            "so which belong to the model is not known"
        )
    if pickled := sorted(file.name for file in folder.iterdir() if file.suffix in PICKLED):
        raise CheckpointError(
            f"{folder}: {pickled[0]} is a pickle, which can run code when opened; convert it to "
            "safetensors first: load it once with transformers where you trust it, then "
            "model.save_pretrained(new_folder)"
        )
    raise CheckpointError(f"{folder}: holds no .safetensors file")
