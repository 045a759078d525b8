"""Where the second moments of several parents are kept: blocks of one matrix in a flat buffer.

All features of all parents, in order, number the rows and columns of one symmetric [O, O] matrix.
Either its upper triangle is kept, as row panels: panel p holds rows [128 p, 128 p + 128) and all
columns from 128 p on, and what lies below the diagonal in it has no meaning. Or only the blocks
between different parents are kept, [d_a, d_b] for every a < b. Each block is row-major, one after
another.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

HEIGHT = 128  # csrc/moments.h names the same height


@dataclass(frozen=True)
class Block:
    """Rows and columns of the [O, O] matrix, and their values [rows, columns] as a view."""

    rows: slice
    columns: slice
    values: Tensor


def spans(sizes: Sequence[int]) -> list[slice]:
    """The features of each parent among all of them."""
    ends = [sum(sizes[: m + 1]) for m in range(len(sizes))]
    return [slice(end - size, end) for end, size in zip(ends, sizes, strict=True)]


def _ranges(sizes: Sequence[int], within: bool) -> Iterator[tuple[slice, slice]]:
    if within:
        width = sum(sizes)
        for begin in range(0, width, HEIGHT):
            yield slice(begin, min(begin + HEIGHT, width)), slice(begin, width)
    else:
        found = spans(sizes)
        for a, rows in enumerate(found):
            for columns in found[a + 1 :]:
                yield rows, columns


def length(sizes: Sequence[int], within: bool) -> int:
    """Entries of the buffer: about O^2 / 2 within, the sum of d_a d_b otherwise."""
    return sum((r.stop - r.start) * (c.stop - c.start) for r, c in _ranges(sizes, within))


def blocks(buffer: Tensor, sizes: Sequence[int], within: bool) -> list[Block]:
    """The blocks of a buffer of :func:`length` entries."""
    found, start = [], 0
    for rows, columns in _ranges(sizes, within):
        shape = (rows.stop - rows.start, columns.stop - columns.start)
        end = start + shape[0] * shape[1]
        found.append(Block(rows, columns, buffer[start:end].view(shape)))
        start = end
    return found


def add_outer(kept: Sequence[Block], left: Tensor, right: Tensor) -> None:
    """Add ``left right^T + right left^T`` for vectors [O]."""
    for block in kept:
        block.values.addr_(left[block.rows], right[block.columns])
        block.values.addr_(right[block.rows], left[block.columns])


def extract(kept: Sequence[Block], rows: slice, columns: slice, device: torch.device) -> Tensor:
    """A copy of [rows, columns], all of it above the diagonal."""
    shape = (rows.stop - rows.start, columns.stop - columns.start)
    found = torch.empty(shape, dtype=torch.float64, device=device)
    for block in kept:
        top, bottom = max(rows.start, block.rows.start), min(rows.stop, block.rows.stop)
        left = max(columns.start, block.columns.start)
        right = min(columns.stop, block.columns.stop)
        if top < bottom and left < right:
            target = found[_inside(top, bottom, rows), _inside(left, right, columns)]
            at = _inside(top, bottom, block.rows), _inside(left, right, block.columns)
            target.copy_(block.values[at])
    return found


def _inside(begin: int, end: int, outer: slice) -> slice:
    return slice(begin - outer.start, end - outer.start)


def symmetric(kept: Iterable[Block], width: int, device: torch.device) -> Tensor:
    """The whole matrix [O, O] of row panels, exactly symmetric."""
    found = torch.empty(width, width, dtype=torch.float64, device=device)
    for block in kept:
        found[block.rows, block.columns] = block.values
        found[block.columns, block.rows] = block.values.T
        square = block.values[:, : block.values.shape[0]]
        found[block.rows, block.rows] = square.triu() + square.triu(1).T
    return found
