"""Gram matrices of all layers in two launches, and their centring.

Work is cut into items: a tile on or above the diagonal of one layer's Gram matrix over a range of
its features. An item is one fp32 tile; the items of a tile are added up in float64 in their order
and written with their mirror image, so the result is symmetric bit by bit and the same every run.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
import triton
import triton.language as tl
from torch import Tensor

from hetmerge.kernels.blocks import TYPES, upload
from hetmerge.kernels.tuning import Config, choose, interpreted, multiprocessors

RUN = 8192  # features added up in float32
MIN_RUN = 256  # features per item at least


@triton.jit
def gram_kernel(
    p_layers,  # [layers, 2] int64: address, row stride
    p_items,  # [items, 5] int64: layer, row, column, first feature, end
    p_parts,  # [items, BN, BN] float32
    samples,
    TYPE: tl.constexpr,
    DOT: tl.constexpr,
    PRECISION: tl.constexpr,
    WIDE: tl.constexpr,
    BN: tl.constexpr,
    BD: tl.constexpr,
):
    """One item: the products of BN samples with BN others over a range of features."""
    i_item = tl.program_id(0).to(tl.int64)
    p_item = p_items + i_item * 5
    p_layer = p_layers + tl.load(p_item) * 2
    p_x = tl.load(p_layer).to(tl.pointer_type(TYPE))
    stride = tl.load(p_layer + 1)
    begin, end = tl.load(p_item + 3), tl.load(p_item + 4)
    if WIDE:
        begin, end = tl.multiple_of(begin, 16), tl.multiple_of(end, 16)
    o_row = tl.load(p_item + 1) + tl.arange(0, BN)
    o_col = tl.load(p_item + 2) + tl.arange(0, BN)
    p_row = p_x + (o_row * stride)[:, None]
    p_col = p_x + (o_col * stride)[:, None]
    if WIDE:
        p_row, p_col = tl.multiple_of(p_row, [16, 16]), tl.multiple_of(p_col, [16, 16])
        p_x = tl.multiple_of(p_x, 16)
    b_gram = tl.zeros([BN, BN], dtype=tl.float32)
    for i_d in range(begin, end, BD):
        o_d = i_d + tl.arange(0, BD)
        m_d = o_d < end
        b_first = tl.load(p_x + o_d, mask=m_d, other=0.0).to(tl.float32)[None, :]  # [1, BD]
        m_row = (o_row < samples)[:, None] & m_d[None, :]
        m_col = (o_col < samples)[:, None] & m_d[None, :]
        b_x = tl.load(p_row + o_d[None, :], mask=m_row, other=0.0).to(tl.float32) - b_first
        b_y = tl.load(p_col + o_d[None, :], mask=m_col, other=0.0).to(tl.float32) - b_first
        b_x, b_y = b_x.to(TYPE).to(DOT), tl.trans(b_y.to(TYPE).to(DOT))
        b_gram = tl.dot(b_x, b_y, b_gram, input_precision=PRECISION)
    o_part = tl.arange(0, BN)[:, None] * BN + tl.arange(0, BN)[None, :]
    tl.store(p_parts + i_item * (BN * BN) + o_part, b_gram)


@triton.jit
def gather_kernel(
    p_tiles,  # [tiles, 5] int64: layer, row, column, first item, end
    p_parts,
    p_grams,  # [layers, samples, samples] float32
    samples,
    BN: tl.constexpr,
    BR: tl.constexpr,
):
    """Add up the items of a tile and write it and its mirror image; BR of its rows at a time."""
    p_tile = p_tiles + tl.program_id(0) * 5
    i_first = tl.program_id(1) * BR
    o_part = (i_first + tl.arange(0, BR))[:, None] * BN + tl.arange(0, BN)[None, :]
    b_gram = tl.zeros([BR, BN], dtype=tl.float64)
    for i_item in range(tl.load(p_tile + 3), tl.load(p_tile + 4)):
        b_gram += tl.load(p_parts + i_item * (BN * BN) + o_part).to(tl.float64)
    o_row = (tl.load(p_tile + 1) + i_first + tl.arange(0, BR))[:, None]
    o_col = (tl.load(p_tile + 2) + tl.arange(0, BN))[None, :]
    m_gram = (o_row <= o_col) & (o_col < samples)
    p_gram = p_grams + tl.load(p_tile) * samples * samples
    b_gram = b_gram.to(tl.float32)
    tl.store(p_gram + o_row * samples + o_col, b_gram, mask=m_gram)
    tl.store(p_gram + o_col * samples + o_row, b_gram, mask=m_gram)


@triton.jit
def mean_kernel(p_grams, p_means, samples, BR: tl.constexpr, BC: tl.constexpr):
    """Row sums without the diagonal over samples - 2, in float64; p_means is [layers, samples]."""
    i_layer = tl.program_id(1).to(tl.int64)
    o_row = tl.program_id(0) * BR + tl.arange(0, BR)
    p_row = p_grams + i_layer * samples * samples + (o_row.to(tl.int64) * samples)[:, None]
    b_sum = tl.zeros([BR], dtype=tl.float64)
    for i_col in range(0, samples, BC):
        o_col = i_col + tl.arange(0, BC)
        m_gram = (o_row < samples)[:, None] & (o_col < samples)[None, :]
        m_gram &= o_row[:, None] != o_col[None, :]
        b_gram = tl.load(p_row + o_col[None, :], mask=m_gram, other=0.0)
        b_sum += tl.sum(b_gram.to(tl.float64), 1)
    tl.store(p_means + i_layer * samples + o_row, b_sum / (samples - 2), mask=o_row < samples)


@triton.jit
def centre_kernel(p_grams, p_means, p_out, samples, BR: tl.constexpr, BC: tl.constexpr):
    """Row and column means taken off every entry but the diagonal, which becomes 0."""
    i_layer = tl.program_id(1).to(tl.int64)
    o_row = tl.program_id(0) * BR + tl.arange(0, BR)
    p_mean = p_means + i_layer * samples
    b_grand = tl.zeros([BC], dtype=tl.float64)
    for i_col in range(0, samples, BC):
        o_col = i_col + tl.arange(0, BC)
        b_grand += tl.load(p_mean + o_col, mask=o_col < samples, other=0.0)
    grand = tl.sum(b_grand, 0) / (samples - 1)
    b_row = tl.load(p_mean + o_row, mask=o_row < samples, other=0.0)
    o_layer = i_layer * samples * samples + (o_row.to(tl.int64) * samples)[:, None]
    for i_col in range(0, samples, BC):
        o_col = i_col + tl.arange(0, BC)
        m_gram = (o_row < samples)[:, None] & (o_col < samples)[None, :]
        b_gram = tl.load(p_grams + o_layer + o_col[None, :], mask=m_gram, other=0.0)
        b_col = tl.load(p_mean + o_col, mask=o_col < samples, other=0.0)
        b_gram = b_gram.to(tl.float64) - (b_row[:, None] + b_col[None, :]) + grand
        b_gram = tl.where(o_row[:, None] == o_col[None, :], 0.0, b_gram)
        tl.store(p_out + o_layer + o_col[None, :], b_gram, mask=m_gram)


def launch_grams(features: Sequence[Tensor], config: Config | None = None) -> Tensor:
    """Gram matrices of the samples relative to the first one, (x - x[0]) (x - x[0])^T.

    bfloat16 and float16 are rounded to their own type again after the first sample is subtracted;
    float32 is multiplied as "tf32x3" or "ieee", as the config says.

    Args:
        features: per layer [n, d_k], bfloat16, float16 or float32, one n, one device; rows of a
            stride, features next to each other (copied first where they are not).
        config: block shapes, by default the tuned ones for the device.

    Returns:
        [layers, n, n] float32, symmetric bit by bit.
    """
    device, samples = features[0].device, len(features[0])
    grams = torch.zeros(len(features), samples, samples, device=device)
    layers = [x if x.stride(1) == 1 else x.contiguous() for x in features]
    for dtype in sorted({x.dtype for x in layers}, key=str):
        _add_grams(layers, dtype, grams, config)
    return grams


def launch_centre(grams: Tensor, out: Tensor | None = None) -> Tensor:
    """U-centring: the scalar products of its results are n (n - 3) times unbiased HSIC.

    Zero diagonal; with m_i = sum over j != i of K_ij / (n - 2) every other entry loses m_i + m_j
    and gains sum(m) / (n - 1) (arXiv 2010.15327, written as one scalar product).

    Args:
        grams: [layers, n, n] float32, symmetric, contiguous, n >= 4.
        out: contiguous, of the shape and type of what is returned; made where it is None.

    Returns:
        [layers, n, n] float64, symmetric bit by bit.
    """
    layers, samples = grams.shape[:2]
    means = grams.new_empty(layers, samples, dtype=torch.float64)
    if out is None:
        out = torch.empty_like(grams, dtype=torch.float64)
    grid = (triton.cdiv(samples, 16), layers)
    mean_kernel[grid](grams, means, samples, BR=16, BC=128)
    centre_kernel[grid](grams, means, out, samples, BR=16, BC=128)
    return out


def _add_grams(
    layers: Sequence[Tensor], dtype: torch.dtype, grams: Tensor, config: Config | None
) -> None:
    """Fill the Gram matrices of the layers of one dtype."""
    chosen = [k for k, x in enumerate(layers) if x.dtype == dtype and x.shape[1] > 0]
    if not chosen or grams.shape[1] == 0:
        return
    device, samples = grams.device, grams.shape[1]
    config = config or choose("similarity", dtype, samples, device)
    block = config["BN"]
    widths = tuple(layers[k].shape[1] for k in chosen)
    items, tiles = _items(tuple(chosen), widths, samples, block, config["BD"], device)
    table = np.array([(x.data_ptr(), x.stride(0)) for x in layers])
    aligned = (
        x.data_ptr() % 16 + x.stride(0) % 16 + x.shape[1] % 16 == 0
        for x in (layers[k] for k in chosen)
    )
    parts = grams.new_empty(len(items), block, block)
    gram_kernel[(len(items),)](
        upload(table, device),
        items,
        parts,
        samples,
        TYPE=TYPES[dtype],
        DOT=tl.float32 if interpreted() else TYPES[dtype],
        PRECISION=config["precision"],
        WIDE=all(aligned),
        BN=block,
        BD=config["BD"],
        num_warps=config["warps"],
        num_stages=config["stages"],
    )
    gather_kernel[(len(tiles), block // 16)](tiles, parts, grams, samples, BN=block, BR=16)


@lru_cache(64)
def _items(
    layers: tuple[int, ...],
    widths: tuple[int, ...],
    samples: int,
    block: int,
    step: int,
    device: torch.device,
) -> tuple[Tensor, Tensor]:
    """The tables of both kernels for some layers, on the device."""
    starts = range(0, samples, block)
    corners = [(i, j) for i in starts for j in starts if j >= i]
    entries = len(corners) * sum(widths)
    run = min(RUN, max(MIN_RUN, entries // (4 * multiprocessors(device))))
    run = -(-run // step) * step
    items, tiles = [], []
    for k, width in zip(layers, widths, strict=True):
        for i, j in corners:
            first = len(items)
            for begin in range(0, width, run):
                items.append((k, i, j, begin, min(width, begin + run)))
            tiles.append((k, i, j, first, len(items)))
    # copied before it returns: whoever takes them from the cache may be on another stream
    return torch.tensor(items).to(device), torch.tensor(tiles).to(device)
