"""The device code of ``moments``: tiles of X^T Y, their parts added up, centred samples."""

from __future__ import annotations

import triton
import triton.language as tl

from hetmerge.kernels.blocks import load_block, open_block


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
    p_out,  # [end - begin, width]
    width,
    begin,
    end,
    X_TYPE: tl.constexpr,
    X_SAMPLES: tl.constexpr,
    X_FEATURES: tl.constexpr,
    X_WIDE: tl.constexpr,
    PIVOT: tl.constexpr,
    BD: tl.constexpr,
    BT: tl.constexpr,
):
    """Samples begin .. end minus the pivot as one matrix, a [BT, BD] block of it."""
    p_block = p_blocks + tl.program_id(0).to(tl.int64) * 5
    i_x, s_x, o_x, m_x = open_block(p_block, BD, X_FEATURES, X_WIDE)
    o_d = tl.load(p_block + 4) + tl.arange(0, BD)  # [BD] int64
    b_pivot = 0.0
    if PIVOT:
        b_pivot = tl.load(p_pivot + o_d, mask=m_x, other=0.0)
    i_t = begin + tl.program_id(1) * BT
    b_x = load_block(i_x, s_x, o_x, m_x, b_pivot, i_t, end, BT, X_TYPE, X_SAMPLES, X_FEATURES,
                     X_WIDE, PIVOT)  # fmt: skip
    o_t = i_t + tl.arange(0, BT)
    p_x = p_out + (o_t - begin).to(tl.int64)[:, None] * width + o_d[None, :]
    tl.store(p_x, b_x.to(p_out.dtype.element_ty), mask=(o_t < end)[:, None] & m_x[None, :])
