"""Where models are, and their inputs beside them."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from hetmerge.batches import Call, Joint
from hetmerge.errors import InputError
from hetmerge.lazy import Checkpoint


def device_of(models: Sequence[nn.Module | Checkpoint]) -> torch.device:
    """The one device that all models are on.

    Raises:
        InputError: they are on several.
    """
    found = [_device(model) for model in models]
    if len(set(found)) > 1:
        raise InputError(
            f"models: are on {', '.join(map(str, found))}; allowed: all of them on one device"
        )
    return found[0]


def known_device(name: torch.device | str) -> torch.device:
    """The device of this name.

    Raises:
        InputError: there is none, or it computes nothing.
    """
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"device: got {str(name)!r} ({str(error).splitlines()[0]})") from error
    return device


def call_on(call: Call, device: torch.device) -> Call:
    """A batch whose tensors are on a device."""
    moved: Any = pytree.tree_map(lambda leaf: _on(leaf, device), (call[0], call[1]))
    if not isinstance(call, Joint):
        return moved[0], moved[1]
    parents = tuple(call_on(theirs, device) for theirs in call.parents)
    return Joint(moved, parents, tuple(rows.to(device) for rows in call.rows))


def _on(leaf: Any, device: torch.device) -> Any:
    return leaf.to(device) if isinstance(leaf, Tensor) else leaf


def _device(model: nn.Module | Checkpoint) -> torch.device:
    if isinstance(model, Checkpoint):
        return model.state.device
    first = next(chain(model.parameters(), model.buffers()), None)
    return torch.device("cpu") if first is None else first.device
