"""A space's partition: every feature of every parent goes to one feature of the merged network."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from hetmerge.tracing.expr import Concat, Expr, Leaf


@dataclass(frozen=True)
class Partition:
    """Labels of one space.

    Attributes:
        width: merged features.
        labels: parent -> int64 [size] in [0, width); parents that lack the space are absent.
        merged: features that share their cluster with another one.
    """

    width: int
    labels: dict[int, Tensor]

    @property
    def merged(self) -> int:
        counts = torch.zeros(self.width, dtype=torch.int64)
        for labels in self.labels.values():
            counts += torch.bincount(labels, minlength=self.width)
        return int(counts[counts > 1].sum())

    @property
    def union(self) -> bool:
        """No two features share a cluster."""
        return self.merged == 0


def identity(size: int, parents: Mapping[int, int] | tuple[int, ...]) -> Partition:
    """Feature i of every parent goes to merged feature i."""
    return Partition(size, {m: torch.arange(size) for m in parents})


def union(sizes: Mapping[int, int]) -> Partition:
    """Every feature of every parent is kept on its own, parent after parent."""
    labels, start = {}, 0
    for m, count in sizes.items():
        labels[m] = torch.arange(start, start + count)
        start += count
    return Partition(start, labels)


def dim_labels(expr: Expr, partitions: Mapping[int, tuple[Tensor, int]]) -> tuple[Tensor, int]:
    """Merged position of every element of one tensor dimension, and the merged size.

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
        shifted = [labels + start for (labels, _), start in zip(parts, starts[:-1], strict=True)]
        return torch.cat(shifted), starts[-1]
    labels, merged = torch.zeros(1, dtype=torch.int64), 1
    for inner, count in parts:
        labels = (labels[:, None] * count + inner).flatten()
        merged *= count
    return labels, merged


def merged_size(expr: Expr, widths: Mapping[int, int]) -> int:
    """Size of a dimension once every space in it has its merged width."""
    if isinstance(expr, Leaf):
        return widths.get(expr.space, expr.size)
    sizes = [merged_size(part, widths) for part in expr.parts]
    return sum(sizes) if isinstance(expr, Concat) else int(torch.tensor(sizes).prod())
