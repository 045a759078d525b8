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
import triton
import triton.language as tl
from hetmerge.kernels.blocks import TYPES, Kind, blocks_of, group, load_block, open_block
from hetmerge.kernels.tuning import Config, choose, interpreted, multiprocessors
from torch import Tensor

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


@triton.jit
def add_tile(p_out, b_tile, i_row, n_row, i_col, n_col, width, TRIANGLE: tl.constexpr,
             BM: tl.constexpr, BN: tl.constexpr, PANEL: tl.constexpr):  # fmt: skip
    """Add a [BM, BN] tile to the float64 total; to the packed triangle with its mirror image."""
    o_m, o_n = tl.arange(0, BM), tl.arange(0, BN)
    m_tile = (o_m < n_row)[:, None] & (o_n < n_col)[None, :]
    b_tile = b_tile.to(tl.float64)
    if TRIANGLE:
        o_row, o_col = i_row + o_m, i_col + o_n  # int64
        m_tile &= o_row[:, None] <= o_col[None, :]
        p_tile = p_out + i_col + panel_row(o_row, width, PANEL)[:, None] + o_n[None, :]
        if i_row + n_row > i_col // PANEL * PANEL:
            p_mirror = p_out + i_row + panel_row(o_col, width, PANEL)[None, :] + o_m[:, None]
            m_mirror = m_tile & (o_row[:, None] < o_col[None, :])
            m_mirror &= (o_row // PANEL)[:, None] == (o_col // PANEL)[None, :]
            b_mirror = tl.load(p_mirror, mask=m_mirror, other=0.0)
            tl.store(p_mirror, b_mirror + b_tile, mask=m_mirror)
    else:
        p_tile = p_out + i_col + ((i_row + o_m) * width)[:, None] + o_n[None, :]
    tl.store(p_tile, tl.load(p_tile, mask=m_tile, other=0.0) + b_tile, mask=m_tile)


@triton.jit
def panel_row(o_row, width, PANEL: tl.constexpr):
    """Where column 0 of a row of the packed triangle would lie."""
    i_panel = o_row // PANEL * PANEL
    # a panel is width - i_panel wide; those before it hold width * i_panel less a triangle
    start = width * i_panel - i_panel * (i_panel - PANEL) // 2
    return start + (o_row - i_panel) * (width - i_panel) - i_panel


@triton.jit
def add_parts(p_out, b_tile, i_row, n_row, i_col, n_col, width, TRIANGLE: tl.constexpr,
              BM: tl.constexpr, BN: tl.constexpr, PANEL: tl.constexpr):  # fmt: skip
    """Add a tile 32 columns at a time: float64 sums of a whole one would not fit the registers."""
    if BN > 32:
        HALF: tl.constexpr = BN // 2
        b_left, b_right = tl.split(tl.permute(tl.reshape(b_tile, [BM, 2, HALF]), [0, 2, 1]))
        add_parts(p_out, b_left, i_row, n_row, i_col, n_col, width, TRIANGLE, BM, HALF, PANEL)
        add_parts(p_out, b_right, i_row, n_row, i_col + HALF, n_col - HALF, width, TRIANGLE, BM,
                  HALF, PANEL)  # fmt: skip
    else:
        add_tile(p_out, b_tile, i_row, n_row, i_col, n_col, width, TRIANGLE, BM, BN, PANEL)


@triton.jit
def product_kernel(
    p_tiles,  # [tiles, 2] int32: block of rows, block of columns
    p_rows,  # [blocks, 5] int64, see blocks_of
    p_cols,
    p_row_pivot,  # [features] float32
    p_col_pivot,
    p_out,  # float64 total, or [splits, tiles, BM, BN] float32
    width,
    begin,
    end,
    share,  # samples per split
    X_TYPE: tl.constexpr,
    X_SAMPLES: tl.constexpr,
    X_FEATURES: tl.constexpr,
    X_WIDE: tl.constexpr,
    Y_TYPE: tl.constexpr,
    Y_SAMPLES: tl.constexpr,
    Y_FEATURES: tl.constexpr,
    Y_WIDE: tl.constexpr,
    ROUND: tl.constexpr,
    DOT: tl.constexpr,
    PRECISION: tl.constexpr,
    PIVOT: tl.constexpr,
    SPLIT: tl.constexpr,
    TRIANGLE: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BT: tl.constexpr,
    PANEL: tl.constexpr,
):
    i_tile = tl.program_id(0).to(tl.int64)
    i_split = tl.program_id(1)
    p_row = p_rows + tl.load(p_tiles + 2 * i_tile).to(tl.int64) * 5
    p_col = p_cols + tl.load(p_tiles + 2 * i_tile + 1).to(tl.int64) * 5
    n_row, i_row = tl.load(p_row + 3), tl.load(p_row + 4)
    n_col, i_col = tl.load(p_col + 3), tl.load(p_col + 4)
    i_x, s_x, o_x, m_x = open_block(p_row, BM, X_FEATURES, X_WIDE)
    i_y, s_y, o_y, m_y = open_block(p_col, BN, Y_FEATURES, Y_WIDE)
    b_px, b_py = 0.0, 0.0
    if PIVOT:
        b_px = tl.load(p_row_pivot + i_row + tl.arange(0, BM), mask=m_x, other=0.0)
        b_py = tl.load(p_col_pivot + i_col + tl.arange(0, BN), mask=m_y, other=0.0)

    i_begin = begin + i_split * share
    i_end = tl.minimum(end, i_begin + share)
    b_acc = tl.zeros([BM, BN], dtype=tl.float32)
    for i_t in range(i_begin, i_end, BT):
        b_x = load_block(i_x, s_x, o_x, m_x, b_px, i_t, i_end, BT, X_TYPE, X_SAMPLES, X_FEATURES,
                         X_WIDE, PIVOT)  # fmt: skip
        b_y = load_block(i_y, s_y, o_y, m_y, b_py, i_t, i_end, BT, Y_TYPE, Y_SAMPLES, Y_FEATURES,
                         Y_WIDE, PIVOT)  # fmt: skip
        b_x = tl.trans(b_x.to(ROUND).to(DOT))  # [BM, BT]
        b_acc = tl.dot(b_x, b_y.to(ROUND).to(DOT), b_acc, input_precision=PRECISION)

    if SPLIT:
        o_tile = tl.arange(0, BM)[:, None] * BN + tl.arange(0, BN)[None, :]
        i_part = i_split.to(tl.int64) * tl.num_programs(0) + i_tile
        tl.store(p_out + i_part * (BM * BN) + o_tile, b_acc)
    else:
        add_parts(p_out, b_acc, i_row, n_row, i_col, n_col, width, TRIANGLE, BM, BN, PANEL)


@triton.jit
def reduce_kernel(
    p_tiles,
    p_rows,
    p_cols,
    p_parts,  # [splits, tiles, BM, BN] float32
    p_out,
    width,
    splits,
    TRIANGLE: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BR: tl.constexpr,
    PANEL: tl.constexpr,
):
    """Add the parts of each tile, in the order of the splits; a program takes BR of its rows."""
    i_tile = tl.program_id(0).to(tl.int64)
    i_first = tl.program_id(1) * BR
    p_row = p_rows + tl.load(p_tiles + 2 * i_tile).to(tl.int64) * 5
    p_col = p_cols + tl.load(p_tiles + 2 * i_tile + 1).to(tl.int64) * 5
    n_row, i_row = tl.load(p_row + 3) - i_first, tl.load(p_row + 4) + i_first
    n_col, i_col = tl.load(p_col + 3), tl.load(p_col + 4)
    o_tile = (i_first + tl.arange(0, BR))[:, None] * BN + tl.arange(0, BN)[None, :]
    b_sum = tl.zeros([BR, BN], dtype=tl.float64)
    for _ in range(splits):
        b_sum += tl.load(p_parts + i_tile * (BM * BN) + o_tile).to(tl.float64)
        i_tile += tl.num_programs(0)
    add_tile(p_out, b_sum, i_row, n_row, i_col, n_col, width, TRIANGLE, BR, BN, PANEL)


@triton.jit
def centre_kernel(
    p_blocks,
    p_pivot,
    p_out,  # [end - begin, width], read only if STORE
    p_sums,  # [splits, width] float64
    width,
    begin,
    end,
    share,
    X_TYPE: tl.constexpr,
    X_SAMPLES: tl.constexpr,
    X_FEATURES: tl.constexpr,
    X_WIDE: tl.constexpr,
    PIVOT: tl.constexpr,
    STORE: tl.constexpr,
    BD: tl.constexpr,
    BT: tl.constexpr,
):
    """Sums of x - pivot over samples, and if STORE the differences themselves as one matrix."""
    i_split = tl.program_id(1)
    p_block = p_blocks + tl.program_id(0).to(tl.int64) * 5
    i_x, s_x, o_x, m_x = open_block(p_block, BD, X_FEATURES, X_WIDE)
    o_d = tl.load(p_block + 4) + tl.arange(0, BD)  # [BD] int64
    b_pivot = 0.0
    if PIVOT:
        b_pivot = tl.load(p_pivot + o_d, mask=m_x, other=0.0)
    i_begin = begin + i_split * share
    i_end = tl.minimum(end, i_begin + share)
    b_sum = tl.zeros([BD], dtype=tl.float64)
    for i_t in range(i_begin, i_end, BT):
        b_x = load_block(i_x, s_x, o_x, m_x, b_pivot, i_t, i_end, BT, X_TYPE, X_SAMPLES,
                         X_FEATURES, X_WIDE, PIVOT).to(tl.float32)  # fmt: skip
        b_sum += tl.sum(b_x, 0).to(tl.float64)
        if STORE:
            o_t = i_t + tl.arange(0, BT)
            p_x = p_out + (o_t - begin).to(tl.int64)[:, None] * width + o_d[None, :]
            m_out = (o_t < i_end)[:, None] & m_x[None, :]
            tl.store(p_x, b_x.to(p_out.dtype.element_ty), mask=m_out)
    tl.store(p_sums + i_split.to(tl.int64) * width + o_d, b_sum, mask=m_x)


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
