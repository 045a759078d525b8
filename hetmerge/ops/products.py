"""Products of matrices that lie inside tensors: X^T X and X^T Y, nothing gathered as a whole."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from hetmerge.ops import native
from hetmerge.ops.accumulate import CHUNK, choose_for
from hetmerge.ops.operand import Operand
from hetmerge.ops.panels import blocks, length, symmetric


def gram(operands: Sequence[Operand], backend: str = "auto") -> Tensor:
    """X^T X of the operands side by side, [p, p] float64, exactly symmetric.

    The precision is that of :class:`hetmerge.ops.Moments`.
    """
    device = operands[0].tensor.device
    sizes = [sum(len(operand.features) for operand in operands)]
    product = torch.zeros(length(sizes, True), dtype=torch.float64, device=device)
    kept = blocks(product, sizes, True)
    name = choose_for([operand.tensor for operand in operands], backend)
    if name == "native":
        from hetmerge import _native

        batch = _native.Batch.operands([_views(operand) for operand in operands])
        _native.moments_gram(batch, None, native.view(product), native.threads())
    elif name == "triton":
        from hetmerge.kernels.moments import launch_moments

        launch_moments(list(operands), torch.zeros(sizes[0], device=device), product)
    else:
        for begin in range(0, len(operands[0].samples), CHUNK):
            chunk = _dense(operands, begin, _exact(operands))
            for block in kept:
                block.values.add_(chunk[:, block.rows].T @ chunk[:, block.columns])
    return symmetric(kept, sizes[0], device)


def cross(left: Sequence[Operand], right: Sequence[Operand], backend: str = "auto") -> Tensor:
    """X^T Y of operands over the same samples, [p, q] float64."""
    device = left[0].tensor.device
    p, q = (sum(len(operand.features) for operand in side) for side in (left, right))
    product = torch.zeros(p, q, dtype=torch.float64, device=device)
    name = choose_for([operand.tensor for operand in (*left, *right)], backend)
    if name == "native":
        from hetmerge import _native

        x, y = (_native.Batch.operands([_views(op) for op in side]) for side in (left, right))
        _native.moments_cross(x, y, None, None, native.view(product), native.threads())
    elif name == "triton":
        from hetmerge.kernels.moments import launch_cross

        launch_cross(list(left), list(right), None, None, product)
    else:
        exact = _exact([*left, *right])
        for begin in range(0, len(left[0].samples), CHUNK):
            product += _dense(left, begin, exact).T @ _dense(right, begin, exact)
    return product


def _views(operand: Operand) -> tuple[native.View, native.View, native.View]:
    offsets = native.view(operand.sample_table), native.view(operand.feature_table)
    return (native.view(operand.tensor), *offsets)


def _exact(operands: Sequence[Operand]) -> bool:
    return any(operand.tensor.dtype == torch.float64 for operand in operands)


def _dense(operands: Sequence[Operand], begin: int, exact: bool) -> Tensor:
    """[samples, p] of one chunk, in the precision of the products."""
    dtype = torch.float64 if exact else torch.float32
    parts = [x.rows(begin, begin + CHUNK).dense().to(dtype) for x in operands]
    return torch.cat(parts, 1)
