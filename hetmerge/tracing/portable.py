"""Operators of programs that were traced without a device, for devices of every kind."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def histc(values: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """Counts; a CPU has none of whole numbers, which single precision holds up to 2^24."""
    return torch.histc(values.to(torch.float32), *args, **kwargs)


def grouped_mm(
    x: Tensor,
    weight: Tensor,
    offs: Tensor | None = None,
    bias: Tensor | None = None,
    out_dtype: torch.dtype | None = None,
) -> Tensor:
    """Rows of each group times the group's matrix; torch has it for bfloat16 alone.

    Args:
        x: [rows, in], sorted by group.
        weight: [groups, in, out].
        offs: [groups] where each group ends.
        bias, out_dtype: as torch takes them; no model gives them.

    Returns:
        [rows, out]; rows behind the last group are zero.
    """
    assert offs is not None
    assert bias is None
    assert out_dtype is None
    out = x.new_zeros(len(x), weight.shape[-1])
    start = 0
    for group, stop in enumerate(offs.tolist()):
        if stop > start:
            torch.mm(x[start:stop], weight[group].to(x), out=out[start:stop])
        start = stop
    return out


ANYWHERE: dict[Any, Any] = {
    torch.ops.aten.histc.default: histc,
    torch.ops.aten._grouped_mm.default: grouped_mm,
}
