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
from functools import cache

import numpy as np
import numpy.typing as npt
import torch
import triton.language as tl
from torch import Tensor

from hetmerge.kernels.blocks import TYPES, Kind, blocks_of, group
from hetmerge.kernels.products import centre_kernel, product_kernel, reduce_kernel
from hetmerge.kernels.tuning import Config, choose, interpreted, multiprocessors
from hetmerge.ops.operand import Operand, columns_last

PANEL = 128  # rows per panel of the packed triangle
RUN = 8192  # samples added up in float32
REDUCE = 625  # samples: 8 bytes per entry at 32 GB/s against 2 operations at 5 TFLOP/s, each per SM
MOST_SPLITS = 16
MIN_SHARE = 256  # samples per split
REDUCE_ROWS = 16
CENTRE_WIDTH = 64
CENTRE_SHARE = 256

Numbers = npt.NDArray[np.int64 | np.int32]


def launch_moments(
    operands: Sequence[Operand],
    pivot: Tensor,
    product: Tensor,
    total: Tensor,
    config: Config | None = None,
) -> None:
    """Add the second moments of one batch to ``product`` and its sums to ``total``.

    Args:
        operands: per parent X_m [n, d_m], bfloat16, float16 or float32; O is the sum of d_m.
            float16 values must stay finite in float16 when the pivot is subtracted.
        pivot: [O] float32, subtracted from every sample.
        product: flat float64, the upper triangle of [O, O] as row panels: panel p holds rows
            128 p .. min(O, 128 p + 128) and columns 128 p .. O, row-major. All of it is written;
            the part of a panel below the diagonal is the mirror image of that above.
        total: [O] float64.
        config: block shapes, by default the tuned ones for the device.
    """
    samples, width = len(operands[0].samples), len(total)
    if width == 0 or samples == 0:
        return
    dtype = common_type(operands)
    config = config or choose("moments", dtype, width, total.device)
    tiles = _tiles(_widths(operands), None, config["BM"], config["BN"])
    splits = count_splits(len(tiles), samples, total.device)
    if not config["stage"]:
        total += centre(operands, pivot, 0, samples, None)
    for begin in range(0, samples, RUN * splits):
        end = min(samples, begin + RUN * splits)
        if config["stage"]:
            staged = total.new_empty(end - begin, width, dtype=dtype)
            total += centre(operands, pivot, begin, end, staged)
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
    tiles = _tiles(_widths(left), _widths(right), config["BM"], config["BN"])
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
    operands: Sequence[Operand], pivot: Tensor | None, begin: int, end: int, out: Tensor | None
) -> Tensor:
    """Sums [O] float64 of x - pivot over samples begin .. end; the differences go to ``out``."""
    device = operands[0].tensor.device
    width = sum(_widths(operands))
    table, kinds = blocks_of(operands, CENTRE_WIDTH)
    columns = -(-width // CENTRE_WIDTH)
    share = max(CENTRE_SHARE, -(-(end - begin) * columns // (4 * multiprocessors(device))))
    splits = -(-(end - begin) // share)
    sums = torch.zeros(splits, width, dtype=torch.float64, device=device)
    for kind, members in group(kinds).items():
        centre_kernel[(len(members), splits)](
            table[members].to(device, non_blocking=True),
            pivot,
            sums if out is None else out,
            sums,
            width,
            begin,
            end,
            share,
            **kind.constants("X"),
            PIVOT=pivot is not None,
            STORE=out is not None,
            BD=CENTRE_WIDTH,
            BT=64,
        )
    return sums.sum(0)


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
    tiles = _tiles(_widths(left), None if right is None else _widths(right), bm, bn)
    row_table, row_kinds = blocks_of(left, bm)
    col_table, col_kinds = blocks_of(columns, bn)
    tables = [table.to(device, non_blocking=True) for table in (row_table, col_table)]
    share = -(-(end - begin) // splits)
    share = -(-share // config["BT"]) * config["BT"]
    splits = -(-(end - begin) // share)
    pivots = [left_pivot, left_pivot if right is None else right_pivot]
    width, dot = sum(_widths(columns)), common_type([*left, *columns])
    shapes = {"TRIANGLE": right is None, "BM": bm, "BN": bn, "PANEL": PANEL}
    if pivots[0] is not None or pivots[1] is not None:
        sizes = sum(_widths(left)), width
        pivots = [
            torch.zeros(size, device=device) if pivot is None else pivot
            for pivot, size in zip(pivots, sizes, strict=True)
        ]
    for (x, y), chosen in _by_kind(tiles, row_kinds, col_kinds):
        numbers = torch.from_numpy(chosen).to(device, non_blocking=True)
        parts = product
        if splits > 1:
            parts = product.new_empty(splits, len(chosen), bm, bn, dtype=torch.float32)
        product_kernel[(len(chosen), splits)](
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
            grid = (len(chosen), bm // REDUCE_ROWS)
            reduce_kernel[grid](
                numbers, *tables, parts, product, width, splits, BR=REDUCE_ROWS, **shapes
            )


def _widths(operands: Sequence[Operand]) -> tuple[int, ...]:
    return tuple(len(operand.features) for operand in operands)


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
    tiles: Numbers, rows: Sequence[Kind], columns: Sequence[Kind]
) -> Iterator[tuple[tuple[Kind, Kind], Numbers]]:
    """Tiles of one pair of kinds at a time; a launch is compiled for one pair."""
    for x, i in group(rows).items():
        for y, j in group(columns).items():
            chosen = tiles[np.isin(tiles[:, 0], i) & np.isin(tiles[:, 1], j)]
            if len(chosen):
                yield (x, y), chosen
