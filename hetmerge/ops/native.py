"""How tensors reach the compiled extension: as addresses with shape and strides, never copied."""

from __future__ import annotations

import torch
from torch import Tensor

# csrc/view.h names the same codes.
CODES = {
    torch.float32: 0,
    torch.float64: 1,
    torch.float16: 2,
    torch.bfloat16: 3,
    torch.int32: 4,
    torch.int64: 5,
    torch.bool: 6,
}

View = tuple[int, int, tuple[int, ...], tuple[int, ...]]


def view(tensor: Tensor) -> View:
    """(address, dtype code, shape, strides in elements) of a CPU or CUDA tensor.

    The caller keeps the tensor alive while native code uses the view.
    """
    return tensor.data_ptr(), CODES[tensor.dtype], tensor.shape, tensor.stride()


def threads() -> int:
    """Threads native code may use: as many as torch would."""
    return torch.get_num_threads()
