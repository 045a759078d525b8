"""Registration of the operations with torch: a schema, one implementation, a fake."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

LIBRARY = torch.library.Library("hetmerge", "DEF")


def register(
    schema: str, implementation: Callable[..., Any], fake: Callable[..., Any]
) -> Callable[..., Any]:
    """Define ``torch.ops.hetmerge.<name>`` and return a function that calls it.

    Outside of compilation and tracing that function calls the implementation itself: the dispatcher
    would cost more than a small problem, about 3 microseconds and 3 more per list of tensors.

    The implementation gets tensors of any device and chooses the backend itself, so that the
    choice, like every check of values, is invisible to torch.compile. ``fake`` gives outputs of
    the right shape, dtype and device for inputs without data.
    """
    name = schema.split("(")[0]
    LIBRARY.define(schema)
    LIBRARY.impl(name, implementation, "CompositeExplicitAutograd")
    torch.library.register_fake(f"hetmerge::{name}", fake, lib=LIBRARY)
    operation = getattr(torch.ops.hetmerge, name).default

    def call(*arguments: Any) -> Any:
        if torch.compiler.is_compiling() or torch._C._len_torch_dispatch_stack() > 0:
            return operation(*arguments)
        return implementation(*arguments)

    return call
