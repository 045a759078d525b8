"""Projection of one tensor of all parents by row and column labels, in one pass, no atomics.

Labels are turned into member lists on the device. One program makes one or more output rows: it
adds up the member rows of each parent as they lie in memory, then takes the columns of the sum
through shared memory. Rows too long for that are taken from memory column by column.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from hetmerge.kernels.tuning import Config, choose

CODES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}
LONGEST = 16384  # entries of a row that one program holds
MOST_COUNTED = 16384  # labels whose ranks are counted, each against all; more are sorted
DIRECT = 1024  # output entries per program where rows are too long


@triton.jit
def rank_kernel(
    p_lists,  # [lists, 5] int64: address of int32 labels, their number, clusters, two offsets
    p_pointers,
    p_members,
    BQ: tl.constexpr,
    BL: tl.constexpr,
):
    """Members of each cluster in ascending order, and where each cluster's begin.

    A label's place is the number of smaller pairs (label, index); a cluster begins where the pair
    (cluster, 0) would stand. Every place is counted, none is claimed, so no order can differ.
    """
    p_list = p_lists + tl.program_id(1) * 5
    p_labels = tl.load(p_list).to(tl.pointer_type(tl.int32))
    n, clusters = tl.load(p_list + 1), tl.load(p_list + 2)
    i_first = tl.program_id(0) * BQ
    if i_first <= n + clusters:
        o_q = i_first + tl.arange(0, BQ)
        m_label = o_q < n
        b_label = tl.load(p_labels + o_q, mask=m_label, other=0).to(tl.int64)
        b_query = tl.where(m_label, b_label * n + o_q, (o_q - n) * n)  # [BQ]
        b_rank = tl.zeros([BQ], dtype=tl.int32)
        for i_l in range(0, n, BL):
            o_l = i_l + tl.arange(0, BL)
            b_other = tl.load(p_labels + o_l, mask=o_l < n, other=0).to(tl.int64) * n + o_l
            m_less = (b_other[None, :] < b_query[:, None]) & (o_l < n)[None, :]
            b_rank += tl.sum(m_less.to(tl.int32), 1)
        tl.store(p_members + tl.load(p_list + 4) + b_rank, o_q, mask=m_label)
        m_cluster = (o_q >= n) & (o_q <= n + clusters)
        tl.store(p_pointers + tl.load(p_list + 3) + o_q - n, b_rank, mask=m_cluster)


@triton.jit
def load_as(address, o_row, o_entry, m_x, TYPE: tl.constexpr, WIDE: tl.constexpr):
    """Entries at o_row [BR, 1] + o_entry [1, BS] of a parent of type TYPE, in float32."""
    p_x = address.to(tl.pointer_type(TYPE)) + o_row
    if WIDE:
        p_x = tl.multiple_of(p_x, [16, 16])
    return tl.load(p_x + o_entry, mask=m_x, other=0.0).to(tl.float32)


@triton.jit
def load_entries(address, code, o_row, o_entry, m_x, WIDE: tl.constexpr):
    """As load_as, with the type looked up in the parent's row."""
    if code == 0:
        b_x = load_as(address, o_row, o_entry, m_x, tl.float32, WIDE)
    elif code == 1:
        b_x = load_as(address, o_row, o_entry, m_x, tl.float16, WIDE)
    else:
        b_x = load_as(address, o_row, o_entry, m_x, tl.bfloat16, WIDE)
    return b_x


@triton.jit
def row_kernel(
    p_parents,  # [parents, 11] int64, see launch_project
    n_parents,
    p_pointers,  # int32, see rank_kernel
    p_members,
    p_out,  # [rows, length]
    rows,
    length,  # columns of the result times inner
    inner,
    FLAT: tl.constexpr,
    WIDE: tl.constexpr,
    BR: tl.constexpr,
    BS: tl.constexpr,
    BC: tl.constexpr,
):
    """BR output rows: member rows added up, then their columns."""
    i_row = tl.program_id(0) * BR + tl.arange(0, BR)
    m_row = i_row < rows
    o_out = tl.arange(0, BC)
    m_out = o_out < length
    i_col = o_out // inner
    o_source = tl.arange(0, BS)
    b_out = tl.zeros([BR, BC], dtype=tl.float32)
    for i_parent in range(n_parents):
        p_parent = p_parents + i_parent * 11
        address, code = tl.load(p_parent), tl.load(p_parent + 1)
        s_row, width = tl.load(p_parent + 2), tl.load(p_parent + 5)
        p_factors = tl.load(p_parent + 6).to(tl.pointer_type(tl.float32))
        if WIDE:
            width = tl.multiple_of(width, 16)
        if FLAT:
            o_entry = o_source
        else:
            o_entry = o_source // inner * tl.load(p_parent + 3)
            o_entry += o_source % inner * tl.load(p_parent + 4)

        p_first = p_pointers + tl.load(p_parent + 7) + i_row
        first = tl.load(p_first, mask=m_row, other=0)
        last = tl.load(p_first + 1, mask=m_row, other=0)
        b_sum = tl.zeros([BR, BS], dtype=tl.float32)
        for i_member in range(tl.max(last - first)):
            m_member = first + i_member < last
            i_source = tl.load(
                p_members + tl.load(p_parent + 8) + first + i_member, mask=m_member, other=0
            )
            b_factor = tl.load(p_factors + i_source, mask=m_member, other=0.0)
            m_x = m_member[:, None] & (o_source < width)[None, :]
            b_x = load_entries(
                address, code, (i_source * s_row)[:, None], o_entry[None, :], m_x, WIDE
            )
            b_sum += b_factor[:, None] * b_x

        p_first = p_pointers + tl.load(p_parent + 9) + i_col
        first = tl.load(p_first, mask=m_out, other=0)
        last = tl.load(p_first + 1, mask=m_out, other=0)
        for i_member in range(tl.max(last - first)):
            m_member = first + i_member < last
            i_source = tl.load(
                p_members + tl.load(p_parent + 10) + first + i_member, mask=m_member, other=0
            )
            o_taken = tl.arange(0, BR)[:, None] * BS + (i_source * inner + o_out % inner)[None, :]
            # along one axis: Triton takes entries of a matrix's rows by shuffles, each from each
            b_taken = tl.gather(tl.reshape(b_sum, [BR * BS]), tl.reshape(o_taken, [BR * BC]), 0)
            b_out += tl.where(m_member[None, :], tl.reshape(b_taken, [BR, BC]), 0.0)
    p_row = p_out + (i_row.to(tl.int64) * length)[:, None] + o_out[None, :]
    m_store = m_row[:, None] & m_out[None, :]
    tl.store(p_row, b_out.to(p_out.dtype.element_ty), mask=m_store)


@triton.jit
def entry_kernel(
    p_parents,
    n_parents,
    p_pointers,
    p_members,
    p_out,
    rows,
    length,
    inner,
    BR: tl.constexpr,
    BC: tl.constexpr,
):
    """A [BR, BC] block of the result, every entry from its own member entries."""
    i_row = tl.program_id(1) * BR + tl.arange(0, BR)
    o_out = tl.program_id(0) * BC + tl.arange(0, BC)
    m_row, m_out = i_row < rows, o_out < length
    i_col = o_out // inner
    b_out = tl.zeros([BR, BC], dtype=tl.float32)
    for i_parent in range(n_parents):
        p_parent = p_parents + i_parent * 11
        address, code = tl.load(p_parent), tl.load(p_parent + 1)
        s_row, s_col, s_inner = (
            tl.load(p_parent + 2),
            tl.load(p_parent + 3),
            tl.load(p_parent + 4),
        )
        p_factors = tl.load(p_parent + 6).to(tl.pointer_type(tl.float32))
        p_first = p_pointers + tl.load(p_parent + 7) + i_row
        first_row = tl.load(p_first, mask=m_row, other=0)
        last_row = tl.load(p_first + 1, mask=m_row, other=0)
        p_first = p_pointers + tl.load(p_parent + 9) + i_col
        first_col = tl.load(p_first, mask=m_out, other=0)
        last_col = tl.load(p_first + 1, mask=m_out, other=0)
        for i_taken in range(tl.max(last_col - first_col)):
            m_col = first_col + i_taken < last_col
            p_col = p_members + tl.load(p_parent + 10) + first_col + i_taken
            o_col = tl.load(p_col, mask=m_col, other=0) * s_col + o_out % inner * s_inner
            for i_member in range(tl.max(last_row - first_row)):
                m_member = first_row + i_member < last_row
                p_source = p_members + tl.load(p_parent + 8) + first_row + i_member
                i_source = tl.load(p_source, mask=m_member, other=0)
                b_factor = tl.load(p_factors + i_source, mask=m_member, other=0.0)
                m_x = m_member[:, None] & m_col[None, :]
                o_row = (i_source * s_row)[:, None]
                b_out += b_factor[:, None] * load_entries(
                    address, code, o_row, o_col[None, :], m_x, False
                )
    p_row = p_out + (i_row.to(tl.int64) * length)[:, None] + o_out[None, :]
    m_store = m_row[:, None] & m_out[None, :]
    tl.store(p_row, b_out.to(p_out.dtype.element_ty), mask=m_store)


def launch_project(
    weights: Sequence[Tensor | None],
    row_labels: Sequence[Tensor],
    col_labels: Sequence[Tensor] | None,
    factors: Sequence[Tensor],
    out: Tensor,
    config: Config | None = None,
) -> None:
    """out[r, c, ...] = sum over parents m, rows i in r, columns j in c of factors[m][i] W_m[i, j].

    Args:
        weights: per parent [R_m, C_m, ...] or [R_m], float32, float16 or bfloat16, any strides;
            None adds nothing. Trailing dimensions that are no single axis of constant stride are
            copied first.
        row_labels, col_labels: per parent int32 [R_m] in [0, rows) and [C_m] in [0, cols), on the
            device, contiguous; ``col_labels`` is None for vectors.
        factors: per parent float32 [R_m].
        out: [rows, cols, ...] or [rows], contiguous, of a type allowed for ``weights``; written.
        config: warps per program, by default the tuned ones for the device.
    """
    if out.numel() == 0:
        return
    device = out.device
    rows = len(out)
    cols, inner = (1, 1) if out.ndim == 1 else (out.shape[1], out[0, 0].numel())
    lists = _Lists()
    table, kept, longest, flat, wide = [], [], cols * inner, True, True
    for m, weight in enumerate(weights):
        if weight is None or weight.numel() == 0:
            continue
        columns = 1 if weight.ndim == 1 else weight.shape[1]
        view = weight.reshape(len(weight), columns, inner)
        labels = row_labels[m].new_zeros(1) if col_labels is None else col_labels[m]
        kept += [view, labels]
        row_step, col_step, step = view.stride()
        bytes_apart = row_step * view.element_size()
        flat &= (inner == 1 or step == 1) and (columns == 1 or col_step == inner)
        wide &= view.data_ptr() % 16 == 0 and bytes_apart % 16 == 0 and columns * inner % 16 == 0
        longest = max(longest, columns * inner)
        table.append((
            view.data_ptr(), CODES[view.dtype], row_step, col_step, step, columns * inner,
            factors[m].data_ptr(), *lists.add(row_labels[m], rows), *lists.add(labels, cols),
        ))  # fmt: skip
    if not table:
        out.zero_()
        return
    pointers, members = lists.build(device)
    parents = torch.tensor(table).to(device, non_blocking=True)
    arguments = parents, len(table), pointers, members, out, rows, cols * inner, inner
    if longest > LONGEST or col_labels is None:
        bc = min(DIRECT, triton.next_power_of_2(cols * inner))
        br = DIRECT // bc
        grid = (triton.cdiv(cols * inner, bc), triton.cdiv(rows, br))
        entry_kernel[grid](*arguments, BR=br, BC=bc)
        return
    config = config or choose("project", out.dtype, triton.next_power_of_2(longest), device)
    br = max(1, config["entries"] // triton.next_power_of_2(longest))
    row_kernel[(triton.cdiv(rows, br),)](
        *arguments,
        FLAT=flat,
        WIDE=wide and flat,
        BR=br,
        BS=triton.next_power_of_2(max(row[5] for row in table)),
        BC=triton.next_power_of_2(cols * inner),
        num_warps=config["warps"],
    )


class _Lists:
    """Label vectors whose member lists are made together."""

    def __init__(self) -> None:
        self.rows: list[tuple[int, int, int, int, int]] = []
        self.labels: list[Tensor] = []
        self.pointers = self.members = 0

    def add(self, labels: Tensor, clusters: int) -> tuple[int, int]:
        """Where the pointers and the members of this vector will begin."""
        place = self.pointers, self.members
        self.rows.append((labels.data_ptr(), len(labels), clusters, *place))
        self.labels.append(labels)
        self.pointers += clusters + 1
        self.members += len(labels)
        return place

    def build(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Pointers [sum of clusters + 1] and members [sum of labels] of all vectors, int32."""
        pointers = torch.empty(self.pointers, dtype=torch.int32, device=device)
        members = torch.empty(self.members, dtype=torch.int32, device=device)
        counted = [row for row in self.rows if row[1] <= MOST_COUNTED]
        if counted:
            queries = max(n + clusters + 1 for _, n, clusters, _, _ in counted)
            table = torch.tensor(counted).to(device, non_blocking=True)
            grid = (triton.cdiv(queries, 64), len(counted))
            rank_kernel[grid](table, pointers, members, BQ=64, BL=128)
        for labels, (_, n, clusters, pointer, member) in zip(self.labels, self.rows, strict=True):
            if n > MOST_COUNTED:
                values, order = labels.sort(stable=True)
                bounds = torch.arange(clusters + 1, dtype=torch.int32, device=device)
                begins = torch.searchsorted(values, bounds, out_int32=True)
                pointers[pointer : pointer + clusters + 1] = begins
                members[member : member + n] = order
        return pointers, members
