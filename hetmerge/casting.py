"""Numbers of another type for writing, where every one of them still fits."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from hetmerge.errors import CheckpointError
from hetmerge.network import state_of


def cast(name: str, tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """A floating-point tensor in another type; other tensors as they are.

    Args:
        name: of the tensor, for the error.

    Raises:
        CheckpointError: a finite number is too large for the type.
    """
    if not tensor.is_floating_point():
        return tensor
    found = tensor.to(dtype)
    if not bool(found.isfinite().all()) and bool(tensor.isfinite().all()):
        short = str(dtype).removeprefix("torch.")
        raise CheckpointError(
            f"out_dtype: tensor {name!r} holds {float(tensor.abs().max()):.4g}, {short} ends at "
            f"{torch.finfo(dtype).max:.4g}; allowed for it: bfloat16, float32, float64"
        )
    return found


def cast_model(model: nn.Module, dtype: torch.dtype) -> None:
    """Every floating-point tensor of a module in another type, in place.

    Raises:
        CheckpointError: one does not fit; the module is as it was.
    """
    for name, tensor in state_of(model).items():
        cast(name, tensor, dtype)
    model.to(dtype)
