"""Numbers, names and tensors in nested dicts and lists, as one file that is whole or not there."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hetmerge.errors import CheckpointError
from hetmerge.files import replace_file
from hetmerge.shard_writer import bytes_of, header_of
from hetmerge.shards import Stored, read_header

Tree = Any  # None, bool, int, float, str, Tensor; lists, tuples and dicts of trees
Storages = dict[tuple[int, torch.dtype], tuple[int, Tensor]]  # address, type -> number, numbers
_FORMAT = "hetmerge snapshot, version 2"


def write_tree(path: Path, tree: Tree) -> None:
    """Write a tree in the safetensors format, storage by storage; nothing without room for it.

    Tensors that share memory share it when they are read, with the same strides: what is computed
    from them has the same bits.
    """
    storages: Storages = {}
    text = json.dumps(_encoded(tree, storages), separators=(",", ":"))
    parts = [bytes_of(storage.cpu()) for _, storage in storages.values()]
    like = {str(number): storage for number, storage in storages.values()}
    if sum(part.nbytes for part in parts) < shutil.disk_usage(path.parent).free:
        replace_file(path, [header_of(like, {_FORMAT: text}), *parts])


def read_tree(path: Path) -> Tree:
    """What :func:`write_tree` wrote, on the devices where it was.

    Raises:
        CheckpointError: the file is damaged, or of another version.
    """
    places = read_header(path)
    with path.open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    text = header.get("__metadata__", {}).get(_FORMAT)
    if text is None:
        raise CheckpointError(f"{path}: is not a {_FORMAT}; remove {path.parent} to start anew")
    return _decoded(json.loads(text), places, {})


def remove_tree(path: Path) -> None:
    """Remove a file, and what a kill may have left of the next one."""
    for file in (path, *path.parent.glob(f".{path.name}.*")):
        file.unlink(missing_ok=True)


def _encoded(tree: Tree, storages: Storages) -> Any:
    if tree is None or isinstance(tree, (bool, int, float, str)):
        return tree
    if isinstance(tree, list):
        return [_encoded(part, storages) for part in tree]
    if isinstance(tree, tuple):
        return {"tuple": [_encoded(part, storages) for part in tree]}
    if isinstance(tree, dict):
        pairs = tree.items()
        return {"dict": [[_encoded(k, storages), _encoded(v, storages)] for k, v in pairs]}
    assert isinstance(tree, Tensor), type(tree)
    storage = tree.untyped_storage()
    key = (storage.data_ptr(), tree.dtype)
    if key not in storages:
        whole = tree.as_strided((storage.nbytes() // tree.element_size(),), (1,), 0)
        storages[key] = (len(storages), whole)
    layout = (tree.storage_offset(), list(tree.shape), list(tree.stride()))
    return {"tensor": [storages[key][0], *layout, str(tree.device)]}


def _decoded(body: Any, places: dict[str, Stored], storages: dict[int, Tensor]) -> Tree:
    if isinstance(body, list):
        return [_decoded(part, places, storages) for part in body]
    if not isinstance(body, dict):
        return body
    ((kind, found),) = body.items()
    if kind == "tuple":
        return tuple(_decoded(part, places, storages) for part in found)
    if kind == "dict":
        pairs = ([_decoded(part, places, storages) for part in pair] for pair in found)
        return {key: value for key, value in pairs}
    index, offset, shape, stride, device = found
    if index not in storages:
        storages[index] = places[str(index)].read().to(device)
    return storages[index].as_strided(shape, stride, offset)
