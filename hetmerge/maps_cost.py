"""Room and work that the dense maps of a merge take, from sizes alone."""

from __future__ import annotations

import math
import shutil
from collections.abc import Sequence
from pathlib import Path

import torch

from hetmerge.batches import Call, positions
from hetmerge.errors import CheckpointError
from hetmerge.gathering import Visit, visits_of
from hetmerge.halfway import MAPS
from hetmerge.importance import ByWeights
from hetmerge.scope import Scope
from hetmerge.setting import Setting
from hetmerge.tracing.expr import size


class NoRoom(CheckpointError):
    """The disk is too small for the dense maps of a plan."""


def check_room(folder: Path, setting: Setting, match: str) -> None:
    """The disk has room for all dense maps, and for the plan that takes them over; maps that an
    earlier run has stored in the folder need none.

    Raises:
        NoRoom: it has not.
    """
    stored = sum(file.stat().st_size for file in (folder / MAPS).glob("*.safetensors"))
    needed = max(0, 2 * maps_bytes(setting, match) - stored)
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise NoRoom(
            f"{folder.parent}: planning {match!r} needs {needed / 1e9:.2f} GB, "
            f"{free / 1e9:.2f} GB are free"
        )


def maps_bytes(setting: Setting, match: str) -> int:
    """Of the dense maps of all spaces, by which what a selection drops is read off."""
    return sum(_each(setting, match))


def largest_map(setting: Setting, match: str) -> int:
    """Bytes of those of one space, at most."""
    return max(_each(setting, match), default=0)


def maps_flops(setting: Setting, match: str, calls: Sequence[Call]) -> int:
    """Operations that choosing takes (see :func:`hetmerge.ops.selection.select`), with the products
    before it; an orthogonal map counts as a selection. No more features than positions are chosen.
    """
    tokens, found = sum(map(positions, calls)), 0
    for visit, sizes in _mapped(setting, match):
        total, rows = sum(sizes), _reading(setting, visit, sizes)
        found += 3 * min(max(sizes), tokens) * total**2 + sum(rows) * total**2
        found += 2 * total * sum(r * size for r, size in zip(rows, sizes, strict=True))
    return found


def _reading(setting: Setting, visit: Visit, sizes: Sequence[int]) -> list[int]:
    """Rows of what reads the space in each parent, or its features where they are fewer."""
    if visit.kind == "axis" or visit.nest:
        return list(sizes)
    found = []
    for m, count in zip(setting.members(visit.space), sizes, strict=True):
        link = setting.links[m]
        readers = ByWeights(link.parent, link.spaces[visit.space])
        found.append(min(count, readers.rows))
    return found


def _each(setting: Setting, match: str) -> list[int]:
    kind = torch.promote_types(setting.skeleton.state.dtype, torch.float32)
    lost = (max(sizes) * (sum(sizes) - max(sizes)) for _, sizes in _mapped(setting, match))
    return [kind.itemsize * count for count in lost]


def _mapped(setting: Setting, match: str) -> list[tuple[Visit, list[int]]]:
    """Every space with a dense map, and its sizes per parent."""
    if match not in ("select", "pca"):
        return []
    visits = {(v.space, v.kind): v for v in visits_of(setting, Scope(whole=match == "pca"))}
    found = ((visit, sizes_at(setting, visit)) for visit in visits.values())
    return [(visit, sizes) for visit, sizes in found if len(sizes) > 1]


def sizes_at(setting: Setting, visit: Visit) -> list[int]:
    """Features per parent of what is seen there."""
    members = setting.members(visit.space)
    if visit.kind == "axis":
        nodes = {m: setting.links[m].node(visit.view.node) for m in members}
        return [
            size(setting.parents[m].graph.values[node][-1]) for m, node in nodes.items() if node
        ]
    spaces = visit.nest or (visit.space,)
    return [math.prod(setting.width(m, k) for k in spaces) for m in members]
