"""Blocks of features of several parents: one table for a launch, and how a block is loaded.

Parents lie in different tensors with different strides. A table row holds the raw address of one
block of features, so one launch covers all parents of a kind without concatenating them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
import triton
import triton.language as tl
from torch import Tensor

from hetmerge.ops.operand import Operand

TYPES = {torch.float32: tl.float32, torch.float16: tl.float16, torch.bfloat16: tl.bfloat16}
Numbers = npt.NDArray[np.int64 | np.int32]


class Kind(NamedTuple):
    """What the code that loads an operand depends on."""

    dtype: torch.dtype
    samples: str  # "step" or "table"
    features: str  # "unit", "step" or "table"
    wide: bool  # rows begin at, and blocks are made of, multiples of 16 elements

    def constants(self, side: str) -> dict[str, object]:
        """Kernel arguments of one side, "X" or "Y"."""
        values = (TYPES[self.dtype], self.samples, self.features, self.wide)
        return {f"{side}_{n}": v for n, v in zip(("TYPE", *SUFFIXES), values, strict=True)}


SUFFIXES = ("SAMPLES", "FEATURES", "WIDE")


def kind_of(operand: Operand) -> Kind:
    unit = operand.feature_stride == 1
    steps = [s for size, s in zip(operand.tensor.shape, operand.tensor.stride(), strict=True)
             if size > 1 and s != 1]  # fmt: skip
    return Kind(
        operand.tensor.dtype,
        "table" if operand.sample_stride is None else "step",
        "unit" if unit else "table" if operand.feature_stride is None else "step",
        unit
        and operand.tensor.data_ptr() % 32 == 0
        and len(operand.features) % 16 == 0
        and (operand.sample_stride or 0) % 16 == 0
        and all(step % 16 == 0 for step in steps),
    )


def blocks_of(operands: Sequence[Operand], height: int) -> Numbers:
    """Table [blocks, 5] int64 of blocks of ``height`` features, in feature order.

    A row is: address of the block's first feature (of the tensor, if features come as a table);
    step between samples in elements, or address of their table; the same for features; number of
    features; index of the first one on the joint axis.
    """
    tables, start = [np.empty((0, 5), np.int64)], 0
    for operand in operands:
        width, step = len(operand.features), operand.feature_stride
        local = np.arange(0, width, height)
        table = np.empty((len(local), 5), np.int64)
        first, size = operand.tensor.data_ptr(), operand.tensor.element_size()
        samples = operand.sample_stride
        table[:, 0] = first if step is None else first + local * (step * size)
        table[:, 1] = operand.sample_table.data_ptr() if samples is None else samples
        table[:, 2] = operand.feature_table.data_ptr() + 8 * local if step is None else step
        table[:, 3] = np.minimum(height, width - local)
        table[:, 4] = start + local
        tables.append(table)
        start += width
    return np.concatenate(tables)


def owners(widths: Sequence[int], height: int) -> Numbers:
    """[blocks] which operand each block of :func:`blocks_of` belongs to."""
    return np.repeat(np.arange(len(widths)), [-(-width // height) for width in widths])


def widths_of(operands: Sequence[Operand]) -> tuple[int, ...]:
    return tuple(len(operand.features) for operand in operands)


def kinds_of(operands: Sequence[Operand]) -> Mapping[Kind, tuple[int, ...]]:
    """Which operands are of each kind; those without features are left out."""
    found: dict[Kind, tuple[int, ...]] = {}
    for m, operand in enumerate(operands):
        if len(operand.features):
            kind = kind_of(operand)
            found[kind] = (*found.get(kind, ()), m)
    return found


def upload(table: Numbers, device: torch.device) -> Tensor:
    return torch.from_numpy(table).to(device, non_blocking=True)


@triton.jit
def open_block(p_block, BD: tl.constexpr, FEATURES: tl.constexpr, WIDE: tl.constexpr):
    """Address and sample step of a block, offsets [BD] of its features, which of them exist."""
    address, step = tl.load(p_block), tl.load(p_block + 1)
    feature, count = tl.load(p_block + 2), tl.load(p_block + 3)
    if WIDE:
        count = tl.multiple_of(count, 16)
    o_d = tl.arange(0, BD)
    m_d = o_d < count
    if FEATURES == "table":
        o_d = tl.load(feature.to(tl.pointer_type(tl.int64)) + o_d, mask=m_d, other=0)
    elif FEATURES == "step":
        o_d = o_d * feature
    return address, step, o_d, m_d


@triton.jit
def load_block(
    address,
    step,
    o_d,
    m_d,
    b_pivot,
    i_t,
    end,
    BT: tl.constexpr,
    TYPE: tl.constexpr,
    SAMPLES: tl.constexpr,
    FEATURES: tl.constexpr,
    WIDE: tl.constexpr,
    PIVOT: tl.constexpr,
):
    """Samples i_t .. i_t + BT of a block minus the pivot, [BT, BD]; zero where there are none."""
    p_x = address.to(tl.pointer_type(TYPE))
    o_t = tl.arange(0, BT)
    m_t = i_t + o_t < end
    if SAMPLES == "table":
        o_s = tl.load(step.to(tl.pointer_type(tl.int64)) + i_t + o_t, mask=m_t, other=0)
    else:
        p_x += i_t * step
        o_s = o_t * step
    # the last axis of a load is the one that should run along memory
    if FEATURES == "unit":
        p_x += o_s[:, None]
        if WIDE:
            p_x = tl.multiple_of(p_x, [32, 32])
        m_x = m_t[:, None] & m_d[None, :]
        b_x = tl.load(p_x + o_d[None, :], mask=m_x, other=0.0)  # [BT, BD]
    else:
        m_x = m_d[:, None] & m_t[None, :]
        b_x = tl.trans(tl.load(p_x + o_d[:, None] + o_s[None, :], mask=m_x, other=0.0))
    if PIVOT:
        b_x = tl.where(m_t[:, None], b_x.to(tl.float32) - b_pivot[None, :], 0.0)
    return b_x
