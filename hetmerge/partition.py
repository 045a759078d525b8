"""The map of a space: which merged feature each feature of each parent becomes, and how it is read.

A partition sends every feature to one cluster, and reads each from its cluster. A selection keeps
some features as they are, and reads the others off the kept ones by a dense matrix.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from hetmerge.tracing.expr import Concat, Expr, Leaf


@dataclass(frozen=True)
class Partition:
    """Labels of one space.

    Attributes:
        width: merged features.
        labels: parent -> int64 [size] in [0, width), -1 for features a selection did not keep;
            parents that lack the space are absent.
        readoff: of a selection, parent -> [size, width] float64, how its features are read from
            the merged ones; empty for a partition, where a feature is read from its cluster.
        merged: features that share their cluster with another one, or were not kept.
    """

    width: int
    labels: dict[int, Tensor]
    readoff: dict[int, Tensor] = field(default_factory=dict)

    @property
    def merged(self) -> int:
        counts = torch.zeros(self.width, dtype=torch.int64)
        dropped = 0
        for labels in self.labels.values():
            counts += torch.bincount(labels[labels >= 0], minlength=self.width)
            dropped += int((labels < 0).sum())
        return int(counts[counts > 1].sum()) + dropped

    @property
    def union(self) -> bool:
        """No two features share a cluster, and all are kept."""
        return self.merged == 0


def identity(width: int, parents: Mapping[int, int] | tuple[int, ...]) -> Partition:
    """Feature i of every parent goes to merged feature i."""
    return Partition(width, {m: torch.arange(width) for m in parents})


def union(sizes: Mapping[int, int]) -> Partition:
    """Every feature of every parent is kept on its own, parent after parent."""
    labels, start = {}, 0
    for m, count in sizes.items():
        labels[m] = torch.arange(start, start + count)
        start += count
    return Partition(start, labels)


def dim_labels(expr: Expr, partitions: Mapping[int, tuple[Tensor, int]]) -> tuple[Tensor, int]:
    """Merged position of every element of one tensor dimension (-1: not kept), and the merged size.

    Args:
        expr: how the dimension is built from the parent's spaces.
        partitions: the parent's space -> (labels, merged width); others keep their order.
    """
    if isinstance(expr, Leaf):
        if expr.space in partitions:
            return partitions[expr.space]
        return torch.arange(expr.size), expr.size
    parts = [dim_labels(part, partitions) for part in expr.parts]
    if isinstance(expr, Concat):
        starts = torch.tensor([0] + [merged for _, merged in parts]).cumsum(0).tolist()
        shifted = [
            torch.where(labels < 0, -1, labels + start)
            for (labels, _), start in zip(parts, starts[:-1], strict=True)
        ]
        return torch.cat(shifted), starts[-1]
    return product_labels(parts)


def product_labels(parts: Sequence[tuple[Tensor, int]]) -> tuple[Tensor, int]:
    """Merged position, and merged size, of every element of an axis that is a product of others."""
    labels, merged = torch.zeros(1, dtype=torch.int64), 1
    for inner, count in parts:
        kept = (labels[:, None] >= 0) & (inner >= 0)
        labels = torch.where(kept, labels[:, None] * count + inner, -1).flatten()
        merged *= count
    return labels, merged


def read_off(
    tensor: Tensor,
    dim: int,
    expr: Expr,
    partitions: Mapping[int, tuple[Tensor, int]],
    readoff: Mapping[int, Tensor],
) -> Tensor:
    """A parent's tensor with dimension `dim` expressed in the kept features of its selections.

    Args:
        expr: how the dimension is built from spaces.
        partitions: the parent's space -> (labels, merged width), for its sizes.
        readoff: the parent's space -> [size, width]; other spaces stay as they are.
    """
    if isinstance(expr, Leaf):
        if expr.space not in readoff:
            return tensor
        matrix = readoff[expr.space].to(tensor)
        read: Tensor = torch.tensordot(tensor, matrix, ([dim], [0])).movedim(-1, dim)
        return read
    sizes = [len(dim_labels(part, partitions)[0]) for part in expr.parts]
    if isinstance(expr, Concat):
        pieces = zip(tensor.split(sizes, dim), expr.parts, strict=True)
        return torch.cat([read_off(x, dim, part, partitions, readoff) for x, part in pieces], dim)
    if not sizes:
        return tensor
    grid = tensor.unflatten(dim, sizes)
    for k, part in enumerate(expr.parts):
        grid = read_off(grid, dim + k, part, partitions, readoff)
    flat: Tensor = grid.flatten(dim, dim + len(sizes) - 1)
    return flat


def merged_size(expr: Expr, widths: Mapping[int, int]) -> int:
    """Size of a dimension once every space in it has its merged width."""
    if isinstance(expr, Leaf):
        return widths.get(expr.space, expr.size)
    sizes = [merged_size(part, widths) for part in expr.parts]
    return sum(sizes) if isinstance(expr, Concat) else int(torch.tensor(sizes).prod())
