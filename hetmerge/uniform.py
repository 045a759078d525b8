"""Equal widths for the same place in every unit, where a family's code knows only one width."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import nn

from hetmerge.huggingface import is_pretrained
from hetmerge.partition import Partition
from hetmerge.setting import Setting

_Place = tuple[int, str, int, tuple[int, ...]]  # stage, tensor in its unit, dimension, path in it


def even_out(
    setting: Setting, partitions: Mapping[int, Partition], weights: Sequence[float]
) -> dict[int, Partition]:
    """Widen the units that only some parents have to the width of the others of their stage.

    A configuration has one number of heads for all its layers, and torch's attention one width for
    heads and stream. The added features have no members: their weights are zero. Units that only
    parents of weight 0 have, and that therefore do nothing, follow the others.
    """
    found = dict(partitions)
    for members in alike(setting, found):
        heard = [k for k in members if any(weights[m] > 0 for m in found[k].labels)]
        width = max(found[k].width for k in heard or members)
        for k in members:
            found[k] = widen(found[k], width)
    return found


def is_uniform(setting: Setting) -> bool:
    """The family's code knows one width for all units of a stage."""
    model = setting.skeleton.model
    return is_pretrained(model) or any(
        isinstance(m, nn.MultiheadAttention) for m in model.modules()
    )


def alike(setting: Setting, spaces: Collection[int], free: bool = True) -> list[list[int]]:
    """Groups of the free (or fixed) ones of these spaces that need one width; most families have
    none."""
    groups: dict[_Place, list[int]] = {}
    for space in setting.skeleton.graph.spaces if is_uniform(setting) else ():
        places = {_place(setting, o.tensor, o.dim, o.path) for o in space.where}
        if space.free == free and space.index in spaces and None not in places:
            groups.setdefault(min(p for p in places if p), []).append(space.index)
    return [group for found in groups.values() for group in _as_in_parents(setting, found)]


def _as_in_parents(setting: Setting, spaces: list[int]) -> list[list[int]]:
    """A group, or several where the units of a parent that has all of them have several widths."""
    where = [o.tensor for k in spaces for o in setting.skeleton.graph.spaces[k].where]
    for m, link in enumerate(setting.links):
        if link.tensors.keys() >= set(where):
            sizes: dict[int, list[int]] = {}
            for k in spaces:
                sizes.setdefault(setting.width(m, k), []).append(k)
            return list(sizes.values())
    return [spaces]


def widen(partition: Partition, width: int) -> Partition:
    """The same map into more features; where there are too many, they share."""
    if partition.width == width:
        return partition
    labels = {
        m: torch.where(found < 0, found, found % width) for m, found in partition.labels.items()
    }
    if partition.width > width:
        return Partition(width, labels, outer=partition.outer)
    grown = width - partition.width
    readoff = {
        m: F.pad(x, (0, grown * (x.shape[1] // partition.width)))
        for m, x in partition.readoff.items()
    }
    writes = {m: F.pad(x, (0, grown)) for m, x in partition.writes.items()}
    return Partition(width, labels, readoff, writes, partition.outer)


def _place(setting: Setting, tensor: str, dim: int, path: tuple[int, ...]) -> _Place | None:
    for s, stage in enumerate(setting.stages):
        for unit in stage.units:
            for i, prefix in enumerate(unit.paths):
                if tensor.startswith(f"{prefix}."):
                    return s, f"{i}{tensor[len(prefix) :]}", dim, path
    return None
