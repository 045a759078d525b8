"""Second moments of several parents' features, without a joint copy.

One fp32 tile of X^T Y at a time, for tiles on and above the diagonal; the pivot is subtracted in
the load. Tiles are added to float64 totals after at most RUN samples. Where tiles are too few to
fill the device, the samples are split and the parts added in a fixed order.

bfloat16 and float16 features are rounded to their own type again after the pivot is subtracted and
multiplied exactly on tensor cores. float32, and parents of different types, go by three tf32
products per product ("tf32x3", about float32's accuracy) or by float32 arithmetic ("ieee").
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache, lru_cache

import numpy as np
import torch
import triton.language as tl
from torch import Tensor

from hetmerge.kernels.blocks import (
    TYPES,
    Kind,
    Numbers,
    blocks_of,
    kinds_of,
    owners,
    upload,
    widths_of,
)
from hetmerge.kernels.products import centre_kernel, product_kernel, reduce_kernel
from hetmerge.kernels.tuning import Config, choose, interpreted, multiprocessors
from hetmerge.ops.operand import Operand, columns_last

PANEL = 128  # rows per panel of the packed triangle
RUN = 8192  # samples added up in float32
REDUCE = 625  # samples: 8 bytes per entry at 32 GB/s against 2 operations at 5 TFLOP/s, each per SM
MOST_SPLITS = 16
MIN_SHARE = 256  # samples per split
REDUCE_ROWS = 16
CENTRE_WIDTH = CENTRE_SAMPLES = 64


def launch_moments(
    operands: Sequence[Operand],
    pivot: Tensor,
    product: Tensor,
    config: Config | None = None,
) -> None:
    """Add the second moments of one batch to ``product``.

    Args:
        operands: per parent X_m [n, d_m], bfloat16, float16 or float32; O is the sum of d_m.
            float16 values must stay finite in float16 when the pivot is subtracted.
        pivot: [O] float32, subtracted from every sample.
        product: flat float64, the upper triangle of [O, O] as row panels: panel p holds rows
            128 p .. min(O, 128 p + 128) and columns 128 p .. O, row-major. All of it is written;
            the part of a panel below the diagonal is the mirror image of that above.
        config: block shapes, by default the tuned ones for the device.
    """
    samples, width = len(operands[0].samples), len(pivot)
    if width == 0 or samples == 0:
        return
    dtype = common_type(operands)
    config = config or choose("moments", dtype, width, product.device)
    tiles = _tiles(widths_of(operands), None, config["BM"], config["BN"])
    splits = count_splits(len(tiles), samples, product.device)
    for begin in range(0, samples, RUN * splits):
        end = min(samples, begin + RUN * splits)
        if config["stage"]:
            staged = product.new_empty(end - begin, width, dtype=dtype)
            centre(operands, pivot, begin, end, staged)
            _multiply(
                [columns_last(staged)], None, None, None, product, 0, end - begin, splits, config
            )
        else:
            _multiply(operands, None, pivot, None, product, begin, end, splits, config)


def launch_cross(
    left: Sequence[Operand],
    right: Sequence[Operand],
    left_pivot: Tensor | None,
    right_pivot: Tensor | None,
    product: Tensor,
    config: Config | None = None,
) -> None:
    """Add X^T Y to ``product``, with X [n, dl] and Y [n, dr] the joint features of each side.

    Args:
        left, right: as in :func:`launch_moments`.
        left_pivot, right_pivot: [dl] and [dr] float32, or None for 0.
        product: [dl, dr] float64, contiguous.
        config: block shapes, by default the tuned ones for the device.
    """
    samples = len(left[0].samples)
    if product.numel() == 0 or samples == 0:
        return
    dtype = common_type([*left, *right])
    config = config or choose("moments", dtype, max(product.shape), product.device)
    tiles = _tiles(widths_of(left), widths_of(right), config["BM"], config["BN"])
    splits = count_splits(len(tiles), samples, product.device)
    for begin in range(0, samples, RUN * splits):
        end = min(samples, begin + RUN * splits)
        if config["stage"]:
            staged = [product.new_empty(end - begin, size, dtype=dtype) for size in product.shape]
            centre(left, left_pivot, begin, end, staged[0])
            centre(right, right_pivot, begin, end, staged[1])
            x, y = ([columns_last(matrix)] for matrix in staged)
            _multiply(x, y, None, None, product, 0, end - begin, splits, config)
        else:
            _multiply(left, right, left_pivot, right_pivot, product, begin, end, splits, config)


def common_type(operands: Sequence[Operand]) -> torch.dtype:
    """Type in which tiles are multiplied: that of all parents, float32 if they differ."""
    found = {operand.tensor.dtype for operand in operands}
    return found.pop() if len(found) == 1 else torch.float32


def count_splits(tiles: int, samples: int, device: torch.device) -> int:
    """Parts into which the samples are cut, from numbers that are the same in every run.

    A device with P multiprocessors takes ceil(tiles * splits / P) / splits rounds over all samples.
    A part costs a write and a read of its tile, as long as about REDUCE samples of products.
    """
    units = multiprocessors(device)

    def cost(splits: int) -> float:
        rounds = -(-tiles * splits // units) / splits
        return rounds + (splits > 1) * splits * tiles / units * REDUCE / samples

    return min(range(1, max(1, min(MOST_SPLITS, samples // MIN_SHARE)) + 1), key=cost)


def centre(
    operands: Sequence[Operand], pivot: Tensor | None, begin: int, end: int, out: Tensor
) -> None:
    """Write x - pivot of samples begin .. end to ``out`` [end - begin, O]."""
    width = out.shape[1]
    table, owner = blocks_of(operands, CENTRE_WIDTH), owners(widths_of(operands), CENTRE_WIDTH)
    for kind, members in kinds_of(operands).items():
        chosen = table[np.isin(owner, members)]
        centre_kernel[(len(chosen), -(-(end - begin) // CENTRE_SAMPLES))](
            upload(chosen, out.device),
            pivot,
            out,
            width,
            begin,
            end,
            **kind.constants("X"),
            PIVOT=pivot is not None,
            BD=CENTRE_WIDTH,
            BT=CENTRE_SAMPLES,
        )


def _multiply(
    left: Sequence[Operand],
    right: Sequence[Operand] | None,  # None: the triangle of left with itself
    left_pivot: Tensor | None,
    right_pivot: Tensor | None,
    product: Tensor,
    begin: int,
    end: int,
    splits: int,
    config: Config,
) -> None:
    """Add the products over samples begin .. end to ``product``."""
    device, bm, bn = product.device, config["BM"], config["BN"]
    columns = left if right is None else right
    tables = [upload(blocks_of(left, bm), device)]
    same = right is None and bm == bn
    tables.append(tables[0] if same else upload(blocks_of(columns, bn), device))
    share = -(-(end - begin) // splits)
    share = -(-share // config["BT"]) * config["BT"]
    splits = -(-(end - begin) // share)
    pivots = [left_pivot, left_pivot if right is None else right_pivot]
    width, dot = sum(widths_of(columns)), common_type([*left, *columns])
    shapes = {"TRIANGLE": right is None, "BM": bm, "BN": bn, "PANEL": PANEL}
    if pivots[0] is not None or pivots[1] is not None:
        sizes = sum(widths_of(left)), width
        pivots = [
            torch.zeros(size, device=device) if pivot is None else pivot
            for pivot, size in zip(pivots, sizes, strict=True)
        ]
    for x, y, numbers in _by_kind(left, right, bm, bn, device):
        parts = product
        if splits > 1:
            parts = product.new_empty(splits, len(numbers), bm, bn, dtype=torch.float32)
        product_kernel[(len(numbers), splits)](
            numbers,
            *tables,
            *pivots,
            parts,
            width,
            begin,
            end,
            share,
            **x.constants("X"),
            **y.constants("Y"),
            ROUND=TYPES[dot],
            DOT=tl.float32 if interpreted() else TYPES[dot],
            PRECISION=config["precision"],
            PIVOT=pivots[0] is not None,
            SPLIT=splits > 1,
            BT=config["BT"],
            **shapes,
            num_warps=config["warps"],
            num_stages=config["stages"],
        )
        if splits > 1:
            grid = (len(numbers), bm // REDUCE_ROWS)
            reduce_kernel[grid](
                numbers, *tables, parts, product, width, splits, BR=REDUCE_ROWS, **shapes
            )


@cache
def _tiles(left: tuple[int, ...], right: tuple[int, ...] | None, bm: int, bn: int) -> Numbers:
    """[tiles, 2] int32 numbers of row and column blocks, those of eight rows next to each other.

    With ``right`` None, only tiles that reach the diagonal or lie above it.
    """
    rows, columns = _starts(left, bm), _starts(left if right is None else right, bn)
    i, j = np.meshgrid(np.arange(len(rows)), np.arange(len(columns)), indexing="ij")
    if right is None:
        last = np.append(columns[1:], sum(left)) - 1
        above = last[j] >= rows[i]
        i, j = i[above], j[above]
    i, j = i.ravel(), j.ravel()
    order = np.lexsort((i, j, i // 8))
    return np.stack([i[order], j[order]], 1).astype(np.int32)


def _starts(widths: tuple[int, ...], height: int) -> Numbers:
    """First feature of each block on the joint axis."""
    begins = np.cumsum((0, *widths))
    return np.concatenate(
        [begin + np.arange(0, width, height) for begin, width in zip(begins, widths, strict=False)]
    )


def _by_kind(
    left: Sequence[Operand],
    right: Sequence[Operand] | None,
    bm: int,
    bn: int,
    device: torch.device,
) -> Iterator[tuple[Kind, Kind, Tensor]]:
    """Tiles of one pair of kinds at a time; a launch is compiled for one pair."""
    widths = widths_of(left), None if right is None else widths_of(right)
    for x, rows in kinds_of(left).items():
        for y, columns in kinds_of(left if right is None else right).items():
            numbers = _tiles_between(*widths, bm, bn, rows, columns, device)
            if len(numbers):
                yield x, y, numbers


@lru_cache(256)
def _tiles_between(
    left: tuple[int, ...],
    right: tuple[int, ...] | None,
    bm: int,
    bn: int,
    rows: tuple[int, ...],
    columns: tuple[int, ...],
    device: torch.device,
) -> Tensor:
    """The tiles of some parents' rows and some parents' columns, on the device."""
    tiles = _tiles(left, right, bm, bn)
    row_owner, col_owner = owners(left, bm), owners(left if right is None else right, bn)
    chosen = np.isin(row_owner[tiles[:, 0]], rows) & np.isin(col_owner[tiles[:, 1]], columns)
    # copied before it returns: whoever takes it from the cache may be on another stream
    return torch.from_numpy(tiles[chosen]).to(device)
