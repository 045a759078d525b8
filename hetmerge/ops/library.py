"""Registration of the operations with torch: a schema, one implementation, a fake."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

LIBRARY = torch.library.Library("hetmerge", "DEF")


def register(
    schema: str, implementation: Callable[..., Any], fake: Callable[..., Any]
) -> Callable[..., Any]:
    """Define ``torch.ops.hetmerge.<name>`` and return it.

    The implementation gets tensors of any device and chooses the backend itself, so that the
    choice, like every check of values, is invisible to torch.compile. ``fake`` gives outputs of
    the right shape, dtype and device for inputs without data.
    """
    name = schema.split("(")[0]
    LIBRARY.define(schema)
    LIBRARY.impl(name, implementation, "CompositeExplicitAutograd")
    torch.library.register_fake(f"hetmerge::{name}", fake, lib=LIBRARY)
    packet = getattr(torch.ops.hetmerge, name)
    found: Callable[..., Any] = packet.default
    return found
