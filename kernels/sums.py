"""Sums over the samples of several parents' features about a shift, and of their squares.

One pass in float64, so the square of a float32 neither overflows nor vanishes, and a sum of squares
is finite exactly where all values are.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import triton
import triton.language as tl
from torch import Tensor

from hetmerge.kernels.blocks import (
    blocks_of,
    kinds_of,
    load_block,
    open_block,
    owners,
    upload,
    widths_of,
)
from hetmerge.kernels.tuning import multiprocessors
from hetmerge.ops.centring import FAR, ROUNDING
from hetmerge.ops.operand import Operand

WIDTH, SAMPLES = 64, 32  # of the block that a program reads at a time
MIN_SHARE = 256  # samples per program
PROGRAMS = 8  # per multiprocessor
JUDGED = 256  # features per program


@triton.jit
def sums_kernel(
    p_blocks,  # [blocks, 5] int64, see blocks_of
    p_shift,  # [features] float64, written if FIRST
    p_sums,  # [splits, 2, features] float64
    width,
    samples,
    share,  # samples per split
    X_TYPE: tl.constexpr,
    X_SAMPLES: tl.constexpr,
    X_FEATURES: tl.constexpr,
    X_WIDE: tl.constexpr,
    FIRST: tl.constexpr,
    BD: tl.constexpr,
    BT: tl.constexpr,
):
    """Sums of one block over one share of the samples; the shift is the first sample if FIRST."""
    i_split = tl.program_id(1)
    p_block = p_blocks + tl.program_id(0).to(tl.int64) * 5
    i_x, s_x, o_x, m_x = open_block(p_block, BD, X_FEATURES, X_WIDE)
    o_d = tl.load(p_block + 4) + tl.arange(0, BD)  # [BD] int64
    if FIRST:
        b_first = load_block(i_x, s_x, o_x, m_x, 0.0, 0, 1, BT, X_TYPE, X_SAMPLES, X_FEATURES,
                             X_WIDE, False)  # fmt: skip
        b_shift = tl.sum(b_first.to(tl.float64), 0)
        tl.store(p_shift + o_d, b_shift, mask=m_x & (i_split == 0))
    else:
        b_shift = tl.load(p_shift + o_d, mask=m_x, other=0.0)
    i_begin = i_split * share
    i_end = tl.minimum(samples, i_begin + share)
    b_sum = tl.zeros([BT, BD], dtype=tl.float64)
    b_power = tl.zeros([BT, BD], dtype=tl.float64)
    for i_t in range(i_begin, i_end, BT):
        b_x = load_block(i_x, s_x, o_x, m_x, 0.0, i_t, i_end, BT, X_TYPE, X_SAMPLES, X_FEATURES,
                         X_WIDE, False)  # fmt: skip
        m_t = i_t + tl.arange(0, BT) < i_end
        b_x = tl.where(m_t[:, None], b_x.to(tl.float64) - b_shift[None, :], 0.0)
        b_sum += b_x
        b_power += b_x * b_x
    p_sum = p_sums + i_split.to(tl.int64) * 2 * width + o_d
    tl.store(p_sum, tl.sum(b_sum, 0), mask=m_x)
    tl.store(p_sum + width, tl.sum(b_power, 0), mask=m_x)


@triton.jit(do_not_specialize=["count"])
def judge_kernel(
    p_before,  # [2, width] float64
    p_found,  # [2, width] float64
    p_flags,  # [width] int8
    width,
    count,
    FAR: tl.constexpr,
    ROUNDING: tl.constexpr,
    BD: tl.constexpr,
):
    o_d = tl.program_id(0) * BD + tl.arange(0, BD)
    m_d = o_d < width
    b_power = tl.load(p_found + width + o_d, mask=m_d, other=0.0)
    b_finite = b_power < float("inf")
    b_mean = tl.load(p_before + o_d, mask=m_d, other=0.0)
    b_mean += tl.load(p_found + o_d, mask=m_d, other=0.0)
    b_power += tl.load(p_before + width + o_d, mask=m_d, other=0.0)
    b_mean /= count.to(tl.float64)
    b_power /= count.to(tl.float64)
    b_square = b_mean * b_mean
    b_variance = b_power - b_square
    b_variance = tl.where(b_variance > ROUNDING * b_power, b_variance, 0.0)
    b_far = b_square > FAR * FAR * b_variance
    tl.store(p_flags + o_d, b_finite.to(tl.int8) + 2 * b_far.to(tl.int8), mask=m_d)


def launch_judge(before: Tensor, found: Tensor, count: int) -> Tensor:
    """What the host has to know before it adds ``found`` to ``before``, sums as of launch_sums.

    Args:
        before, found: [2, O] float64, contiguous.
        count: samples of both together, >= 1.

    Returns:
        [O] int8: 1 where the found values are finite, plus 2 where is_far of ops/centring.py.
    """
    width = found.shape[1]
    flags = torch.empty(width, dtype=torch.int8, device=found.device)
    if width:
        judge_kernel[(triton.cdiv(width, JUDGED),)](
            before, found, flags, width, count, FAR=FAR, ROUNDING=ROUNDING, BD=JUDGED
        )
    return flags


def launch_sums(operands: Sequence[Operand], shift: Tensor | None) -> tuple[Tensor, Tensor]:
    """Sums over all samples of x - shift and of its square.

    Args:
        operands: per parent X_m [n, d_m], bfloat16, float16 or float32, n >= 1; O is the sum of
            d_m.
        shift: [O] float64, or None for the first sample.

    Returns:
        The shift [O] and the sums [2, O], float64. The sum of squares of a feature is finite
        exactly where all its values are.
    """
    device, samples = operands[0].tensor.device, len(operands[0].samples)
    table, owner = blocks_of(operands, WIDTH), owners(widths_of(operands), WIDTH)
    width = sum(widths_of(operands))
    splits = max(1, PROGRAMS * multiprocessors(device) // max(1, len(table)))
    share = max(MIN_SHARE, triton.cdiv(samples, splits))
    splits = triton.cdiv(samples, share)
    sums = torch.empty(splits, 2, width, dtype=torch.float64, device=device)
    about = torch.empty(width, dtype=torch.float64, device=device) if shift is None else shift
    for kind, members in kinds_of(operands).items():
        chosen = table[np.isin(owner, members)]
        sums_kernel[(len(chosen), splits)](
            upload(chosen, device),
            about,
            sums,
            width,
            samples,
            share,
            **kind.constants("X"),
            FIRST=shift is None,
            BD=WIDTH,
            BT=SAMPLES,
        )
    return about, sums.sum(0)
