"""The map of a space: which merged feature each feature of each parent becomes, and how it is read.

A partition sends every feature to one cluster, and reads each from its cluster. A selection keeps
some features as they are, and reads the others off the kept ones by a dense matrix. An orthogonal
map keeps directions of all parents' features together: both ways are dense.
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
        labels: parent -> int64 [size] in [0, width), -1 for features a selection did not keep and
            for all of an orthogonal map; parents that lack the space are absent.
        readoff: of a selection or an orthogonal map, parent -> [size, width] float64, how its
            features are read from the merged ones; empty for a partition, where a feature is read
            from its cluster. Where f features stand inside each of them, as inside heads, it may
            be [size * f, width * f].
        writes: of an orthogonal map, parent -> [size, width] float64, what its features add to the
            merged ones, which are a sum over the parents and no average.
        merged: features that share their cluster with another one, or were not kept; of an
            orthogonal map, by how many directions it is short of all features.
    """

    width: int
    labels: dict[int, Tensor]
    readoff: dict[int, Tensor] = field(default_factory=dict)
    writes: dict[int, Tensor] = field(default_factory=dict)

    @property
    def merged(self) -> int:
        if self.writes:
            return max(0, sum(len(labels) for labels in self.labels.values()) - self.width)
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

    @property
    def alone(self) -> bool:
        """Every cluster is one feature of one parent; some may be left out."""
        kept = torch.cat([labels[labels >= 0] for labels in self.labels.values()])
        return not self.writes and len(kept.unique()) == len(kept)


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


def through(
    tensor: Tensor,
    dim: int,
    expr: Expr,
    partitions: Mapping[int, tuple[Tensor, int]],
    matrices: Mapping[int, Tensor],
) -> Tensor:
    """A parent's tensor with dimension `dim` brought through the dense maps of its spaces.

    Args:
        expr: how the dimension is built from spaces.
        partitions: the parent's space -> (labels, merged width), for its sizes.
        matrices: the parent's space -> [size, width], or of all that stands inside the space;
            other spaces stay as they are.
    """
    if isinstance(expr, Leaf):
        if expr.space not in matrices:
            return tensor
        matrix = matrices[expr.space].to(tensor)
        read: Tensor = torch.tensordot(tensor, matrix, ([dim], [0])).movedim(-1, dim)
        return read
    sizes = [len(dim_labels(part, partitions)[0]) for part in expr.parts]
    if isinstance(expr, Concat):
        pieces = zip(tensor.split(sizes, dim), expr.parts, strict=True)
        return torch.cat([through(x, dim, part, partitions, matrices) for x, part in pieces], dim)
    if not sizes:
        return tensor
    first = expr.parts[0]
    whole = matrices.get(first.space) if isinstance(first, Leaf) else None
    if whole is not None and len(whole) == tensor.shape[dim] != sizes[0]:
        axis: Tensor = torch.tensordot(tensor, whole.to(tensor), ([dim], [0])).movedim(-1, dim)
        return axis
    grid = tensor.unflatten(dim, sizes)
    for k, part in enumerate(expr.parts):
        grid = through(grid, dim + k, part, partitions, matrices)
    flat: Tensor = grid.flatten(dim, dim + len(sizes) - 1)
    return flat


def merged_size(expr: Expr, widths: Mapping[int, int]) -> int:
    """Size of a dimension once every space in it has its merged width."""
    if isinstance(expr, Leaf):
        return widths.get(expr.space, expr.size)
    sizes = [merged_size(part, widths) for part in expr.parts]
    return sum(sizes) if isinstance(expr, Concat) else int(torch.tensor(sizes).prod())
