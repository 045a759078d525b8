"""A merged network that is written while it is made: its tensors are never all in memory."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hetmerge.blueprint import Blueprint
from hetmerge.draft import Draft
from hetmerge.huggingface import merged_config
from hetmerge.lazy import empty
from hetmerge.network import Network
from hetmerge.projection import Projector
from hetmerge.realising import Realised, check_same
from hetmerge.setting import Setting
from hetmerge.shard_writer import ShardWriter
from hetmerge.weights import OnDisk, tensors_of

SHARD = 5_000_000_000  # bytes


@dataclass(frozen=True)
class Place:
    """Where and how a merged checkpoint is written.

    Attributes:
        folder: exists; holds what an earlier run has finished, if there was one.
        dtype: of floating-point tensors; None: that of the base parent's largest tensor.
        shard_bytes: of a file, at most.
    """

    folder: Path
    dtype: torch.dtype | None = None
    shard_bytes: int = SHARD


def realise_on_disk(setting: Setting, projector: Projector, place: Place) -> Realised:
    """The merged network over shards that are filled as its tensors become final.

    Raises:
        PlanError: no configuration of the family has the merged sizes.
        CheckpointError: too little space.
    """
    base: Any = setting.skeleton.model
    config, program = merged_config(setting, projector.widths)
    model = empty(type(base), config)
    stored = set(model.state_dict())
    names: dict[int, str] = {}
    owners = {n: names.setdefault(id(t), n) for n, t in tensors_of(model) if n in stored}
    tensors = dict(tensors_of(model))
    dtype = place.dtype or stored_type(setting)
    like = {
        name: torch.empty_like(tensors[name], device="meta", dtype=_kind(tensors[name], dtype))
        for name in dict.fromkeys(owners.values())
    }
    made = set(setting.skeleton.graph.tensors) | set(setting.skeleton.graph.aliases)
    unused = _unused(setting, {n: t for n, t in like.items() if n not in made})
    draft = Draft(
        projector,
        ShardWriter(place.folder, like, place.shard_bytes),
        owners,
        {n: t for n, t in tensors.items() if n not in stored},
        unused,
        _first(setting).dtype,
    )
    config.dtype = dtype
    model.config = config
    merged = Network(model, setting.call, "merged model", fold=False, state=draft, program=program)
    check_same(merged, projector)
    return Realised(merged, projector, Blueprint())


def _kind(tensor: Tensor, dtype: torch.dtype) -> torch.dtype:
    return dtype if tensor.is_floating_point() else tensor.dtype


def _first(setting: Setting) -> OnDisk:
    state = setting.parents[setting.alignment.base].state
    assert isinstance(state, OnDisk)
    return state


def stored_type(setting: Setting) -> torch.dtype:
    """The type of the base parent's largest tensor."""
    places = _first(setting).stored.values()
    return max(places, key=lambda place: place.stop - place.start).dtype


def _unused(setting: Setting, like: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tensors that no output depends on: those of the base parent, or zeros in another shape."""
    state = _first(setting)
    return {
        name: state[name]
        if name in state and state[name].shape == tensor.shape
        else torch.zeros(tensor.shape, dtype=tensor.dtype)
        for name, tensor in like.items()
    }
