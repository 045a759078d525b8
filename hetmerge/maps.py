"""Dense maps of spaces in files: read whenever they are used, so that memory holds few of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from hetmerge.errors import CheckpointError
from hetmerge.files import replace_file
from hetmerge.partition import Partition
from hetmerge.shard_writer import bytes_of, header_of
from hetmerge.shards import Stored, read_header


class StoredMaps(Mapping[int, Tensor]):
    """Parent -> dense map of one space, read from its file whenever it is asked for.

    Args:
        places: parent -> where it lies; the file must stay as it is.
    """

    def __init__(self, places: Mapping[int, Stored]) -> None:
        self.places = dict(places)

    def __getitem__(self, parent: int) -> Tensor:
        return self.places[parent].read()

    def __contains__(self, parent: object) -> bool:
        return parent in self.places  # without reading it

    def __iter__(self) -> Iterator[int]:
        return iter(self.places)

    def __len__(self) -> int:
        return len(self.places)


class MapsOf(Mapping[int, Tensor]):
    """Space -> dense map of one parent.

    Args:
        maps: space -> parent -> dense map.
        parent: index; spaces without a map of its are left out.
    """

    def __init__(self, maps: Mapping[int, Mapping[int, Tensor]], parent: int) -> None:
        self._maps = {space: found for space, found in maps.items() if parent in found}
        self._parent = parent

    def __getitem__(self, space: int) -> Tensor:
        return self._maps[space][self._parent]

    def __contains__(self, space: object) -> bool:
        return space in self._maps

    def __iter__(self) -> Iterator[int]:
        return iter(self._maps)

    def __len__(self) -> int:
        return len(self._maps)


def store_maps(path: Path, maps: Mapping[int, Tensor]) -> StoredMaps:
    """Write the maps of one space to a file, in place of an older one.

    Raises:
        CheckpointError: it cannot be written.
    """
    like = {str(parent): tensor.contiguous() for parent, tensor in maps.items()}
    try:
        path.parent.mkdir(exist_ok=True)
        replace_file(path, [header_of(like, {}), *map(bytes_of, like.values())])
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be written ({error.strerror or error})") from error
    return stored_maps(path)


def stored_maps(path: Path) -> StoredMaps:
    """What :func:`store_maps` wrote.

    Raises:
        CheckpointError: it is missing or damaged.
    """
    return StoredMaps({int(parent): place for parent, place in read_header(path).items()})


def pack(partitions: Mapping[int, Partition]) -> dict[int, dict[str, Any]]:
    """Partitions as plain data; maps that lie in files are left there."""
    return {
        k: {**vars(found), "readoff": None if _lies(found) else found.readoff}
        for k, found in partitions.items()
    }


def unpack(
    packed: Mapping[int, dict[str, Any]], known: Callable[[int], StoredMaps]
) -> dict[int, Partition]:
    """What :func:`pack` made plain.

    Args:
        known: space -> its maps that lie in a file.
    """
    return {
        k: Partition(**{**found, "readoff": known(k)} if found["readoff"] is None else found)
        for k, found in packed.items()
    }


def _lies(partition: Partition) -> bool:
    """Its read-offs lie in a file."""
    return isinstance(partition.readoff, StoredMaps)
