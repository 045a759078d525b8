"""The map of a space: which merged feature each feature of each parent becomes, and how it is read.

A partition sends every feature to one cluster, and reads each from its cluster. A selection keeps
some features as they are, and reads the others off the kept ones by a dense matrix. An orthogonal
map keeps directions of all parents' features together: both ways are dense.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from hetmerge.tracing.expr import Concat, Expr, Leaf, Product, leaves


@dataclass(frozen=True)
class Partition:
    """Labels of one space, on the CPU, as all of a plan.

    Attributes:
        width: merged features.
        labels: parent -> int64 [size] in [0, width), -1 for features a selection did not keep and
            for all of an orthogonal map; parents that lack the space are absent. Where they differ
            inside the parent's heads or groups, [heads or groups, size].
        readoff: of a selection or an orthogonal map, parent -> [lost, width], how its features of
            label -1 are read from the merged ones, in their order; a kept one is read from where it
            is. Empty for a partition, where a feature is read from its cluster. Where f features
            stand inside each of them, as inside heads, it may be [lost * f, width * f].
        writes: of an orthogonal map, parent -> [size, width] float64, what its features add to the
            merged ones, which are a sum over the parents and no average.
        outer: the space of the heads or groups inside which labels differ; None: they do not.
        merged: features that share their cluster with another one, or were not kept, inside heads
            in their mean; of an orthogonal map, by how many directions it is short of all features.
    """

    width: int
    labels: dict[int, Tensor]
    readoff: Mapping[int, Tensor] = field(default_factory=dict)
    writes: dict[int, Tensor] = field(default_factory=dict)
    outer: int | None = None

    def cpu(self) -> Partition:
        """The same with what was computed on another device."""
        labels, readoff, writes = (
            {m: tensor.cpu() for m, tensor in found.items()}
            for found in (self.labels, self.readoff, self.writes)
        )
        return Partition(self.width, labels, readoff, writes, self.outer)

    def read_in(self, dtype: torch.dtype) -> Partition:
        """The same with read-offs of this type, as they are used."""
        readoff = {m: rows.to(dtype) for m, rows in self.readoff.items()}
        return Partition(self.width, self.labels, readoff, self.writes, self.outer)

    def dense(self, parent: int) -> Tensor:
        """[size, width]: how all features of one parent are read, kept ones among them; of what
        stands inside them where the read-off is."""
        rows, labels = self.readoff[parent], self.labels[parent]
        kept, lost, where = _apart(labels, rows.shape[1] // self.width)
        matrix = rows.new_zeros(len(kept) + len(lost), rows.shape[1])
        matrix[lost] = rows
        matrix[kept, where] = 1.0
        return matrix

    def of(self, parent: int) -> Spread:
        """Where the features of one parent go."""
        return Spread(self.labels[parent], self.width, self.outer)

    @property
    def merged(self) -> int:
        if self.writes:
            return max(0, sum(len(labels) for labels in self.labels.values()) - self.width)
        counts = torch.zeros(self.width, dtype=torch.float64)
        dropped = 0
        for labels in self.labels.values():
            units = 1 if self.outer is None else len(labels)
            counts += torch.bincount(labels[labels >= 0], minlength=self.width) / units
            dropped += int((labels < 0).sum())
        return round(float(counts[counts > 1].sum())) + dropped

    @property
    def union(self) -> bool:
        """No two features share a cluster, and all are kept."""
        return self.merged == 0

    @property
    def alone(self) -> bool:
        """Every cluster is one feature of one parent; some may be left out."""
        kept = torch.cat([labels[labels >= 0] for labels in self.labels.values()])
        return not self.writes and len(kept.unique()) == len(kept)


@dataclass(frozen=True)
class Spread:
    """Where one parent's features of a space go: :class:`Partition` for one parent."""

    labels: Tensor
    width: int
    outer: int | None = None

    def inside(self, units: Mapping[int, Tensor]) -> Tensor:
        """Labels [places, size] at places that stand in these units of outer spaces, [places]."""
        return self.labels[None] if self.outer is None else self.labels[units[self.outer]]


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


def dim_labels(
    expr: Expr, partitions: Mapping[int, Spread], units: Mapping[int, int] | None = None
) -> tuple[Tensor, int]:
    """Merged position of every element of one tensor dimension (-1: not kept), and the merged size.

    Args:
        expr: how the dimension is built from the parent's spaces.
        partitions: space -> where the parent's features go; others keep their order.
        units: outer space -> its unit that the dimension stands in, where another one says so.
    """
    known = {k: torch.tensor([unit]) for k, unit in (units or {}).items()}
    labels, merged = _labels(expr, partitions, known, 1)
    return labels[0], merged


def _labels(
    expr: Expr, partitions: Mapping[int, Spread], units: Mapping[int, Tensor], places: int
) -> tuple[Tensor, int]:
    """The same [places, size] at so many places, which stand in units [places] of outer spaces."""
    if isinstance(expr, Leaf):
        found = partitions.get(expr.space) or Spread(torch.arange(expr.size), expr.size)
        return found.inside(units).expand(places, -1), found.width
    if isinstance(expr, Product):
        return _inside(expr, partitions, units, places)
    parts = [_labels(part, partitions, units, places) for part in expr.parts]
    starts = torch.tensor([0] + [merged for _, merged in parts]).cumsum(0).tolist()
    shifted = [
        torch.where(labels < 0, -1, labels + start)
        for (labels, _), start in zip(parts, starts[:-1], strict=True)
    ]
    return torch.cat(shifted, 1), starts[-1]


def _inside(
    expr: Product, partitions: Mapping[int, Spread], units: Mapping[int, Tensor], places: int
) -> tuple[Tensor, int]:
    """Each part of a product stands in the units of the parts before it."""
    labels, merged = torch.zeros(places, 1, dtype=torch.int64), 1
    for part in expr.parts:
        count = labels.numel()
        inner, width = _labels(part, partitions, units, count)
        size = inner.shape[1]
        labels = within(labels.reshape(-1, 1), inner, width).reshape(places, -1)
        units = {k: unit.repeat_interleave(size) for k, unit in units.items()}
        if isinstance(part, Leaf):
            units[part.space] = torch.arange(size).repeat(count)
        merged *= width
    return labels, merged


def within(outer: Tensor, inner: Tensor, width: int) -> Tensor:
    """Merged positions of inner features, `width` in each outer unit; -1 where one is not kept."""
    return torch.where((outer >= 0) & (inner >= 0), outer * width + inner, -1)


def product_labels(parts: Sequence[tuple[Tensor, int]]) -> tuple[Tensor, int]:
    """Merged position, and merged size, of every element of an axis that is a product of others."""
    labels, merged = torch.zeros(1, dtype=torch.int64), 1
    for inner, count in parts:
        labels = within(labels[:, None], inner, count).flatten()
        merged *= count
    return labels, merged


def owner(exprs: Sequence[Expr], dim: int, path: Sequence[int], outer: int) -> int | None:
    """The dimension of a tensor that says which unit of the outer space an element stands in.

    Args:
        exprs: how its dimensions are built.
        dim, path: where the element's space is.

    Returns:
        `dim` where the outer space is an earlier part of a product around it; else the one other
        dimension that has the outer space; None if there is none, or several.
    """
    expr = exprs[dim]
    for i in path:
        assert isinstance(expr, (Product, Concat))
        if isinstance(expr, Product) and outer in _spaces(expr.parts[:i]):
            return dim
        expr = expr.parts[i]
    others = [d for d, other in enumerate(exprs) if d != dim and outer in _spaces(_parts(other))]
    return others[0] if len(others) == 1 else None


def unit_numbers(expr: Expr, outer: int, partitions: Mapping[int, Spread]) -> Tensor:
    """int64 [size]: the unit of an outer space, one of the parts, that each element stands in."""
    parts = _parts(expr)
    sizes = [size_of(part, partitions) for part in parts]
    at = [isinstance(part, Leaf) and part.space == outer for part in parts].index(True)
    before, after = math.prod(sizes[:at]), math.prod(sizes[at + 1 :])
    return torch.arange(sizes[at]).repeat_interleave(after).repeat(before)


def _parts(expr: Expr) -> tuple[Expr, ...]:
    return expr.parts if isinstance(expr, Product) else (expr,)


def _spaces(parts: Sequence[Expr]) -> list[int]:
    return [part.space for part in parts if isinstance(part, Leaf)]


def through(
    tensor: Tensor,
    dim: int,
    expr: Expr,
    partitions: Mapping[int, Spread],
    matrices: Mapping[int, Tensor],
) -> Tensor:
    """A parent's tensor with dimension `dim` brought through the dense maps of its spaces.

    Args:
        expr: how the dimension is built from spaces.
        partitions: space -> where the parent's features go, for its sizes.
        matrices: the parent's space -> [features of label -1, width], or of all that stands inside
            the space; other spaces stay as they are.
    """
    if not any(leaf.space in matrices for leaf in leaves(expr)):
        return tensor
    if isinstance(expr, Leaf):
        return _through(tensor, dim, partitions[expr.space], matrices[expr.space])
    sizes = [size_of(part, partitions) for part in expr.parts]
    if isinstance(expr, Concat):
        pieces = zip(tensor.split(sizes, dim), expr.parts, strict=True)
        return torch.cat([through(x, dim, part, partitions, matrices) for x, part in pieces], dim)
    first = expr.parts[0]
    if isinstance(first, Leaf) and first.space in matrices:
        whole, spread = matrices[first.space], partitions[first.space]
        if whole.shape[1] != spread.width:
            return _through(tensor, dim, spread, whole)
    grid = tensor.unflatten(dim, sizes)
    for k, part in enumerate(expr.parts):
        grid = through(grid, dim + k, part, partitions, matrices)
    flat: Tensor = grid.flatten(dim, dim + len(sizes) - 1)
    return flat


def _through(tensor: Tensor, dim: int, spread: Spread, rows: Tensor) -> Tensor:
    """One dimension: what is lost through the dense rows, what is kept added where it goes."""
    kept, lost, where = (
        index.to(tensor.device) for index in _apart(spread.labels, rows.shape[1] // spread.width)
    )
    dropped = tensor.index_select(dim, lost) if len(kept) else tensor
    read: Tensor = torch.tensordot(dropped, rows.to(tensor), ([dim], [0])).movedim(-1, dim)
    return read.index_add(dim, where, tensor.index_select(dim, kept)) if len(kept) else read


def _apart(labels: Tensor, inside: int) -> tuple[Tensor, Tensor, Tensor]:
    """Indices of kept features, of lost ones (label -1), and where the kept ones go, with so many
    features inside each."""
    steps = torch.arange(inside)
    kept, lost = (labels >= 0).nonzero(), (labels < 0).nonzero()
    found = (kept, lost, labels[kept])
    kept, lost, where = ((index * inside + steps).flatten() for index in found)
    return kept, lost, where


def size_of(expr: Expr, partitions: Mapping[int, Spread]) -> int:
    """Of a dimension in the parent."""
    if isinstance(expr, Leaf):
        found = partitions.get(expr.space)
        return found.labels.shape[-1] if found else expr.size
    sizes = [size_of(part, partitions) for part in expr.parts]
    return math.prod(sizes) if isinstance(expr, Product) else sum(sizes)


def merged_size(expr: Expr, widths: Mapping[int, int]) -> int:
    """Size of a dimension once every space in it has its merged width."""
    if isinstance(expr, Leaf):
        return widths.get(expr.space, expr.size)
    sizes = [merged_size(part, widths) for part in expr.parts]
    return sum(sizes) if isinstance(expr, Concat) else int(torch.tensor(sizes).prod())
