"""Every tensor of every parent through the partitions: the weights of the merged network."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hetmerge.attention import Factor
from hetmerge.branches import Passage
from hetmerge.correspondence import Correspondence
from hetmerge.layers import op_name, tensor_names
from hetmerge.maps import MapsOf
from hetmerge.network import Network
from hetmerge.norm_scales import NormFactors
from hetmerge.ops.project import project
from hetmerge.partition import (
    Partition,
    Spread,
    dim_labels,
    merged_size,
    owner,
    product_labels,
    size_of,
    through,
    unit_numbers,
)
from hetmerge.score_scales import score_factors
from hetmerge.setting import Setting
from hetmerge.tracing.expr import Expr, Leaf, located


@dataclass(frozen=True)
class Share:
    """One parent's part in one merged tensor.

    `tensor` is None where the parent adds nothing but its features still count in the average: the
    absent branch of a residual unit is zero, not missing.
    """

    parent: int
    tensor: Tensor | None


class Projector:
    """Sends tensors and activations of the parents through one set of partitions."""

    def __init__(
        self,
        setting: Setting,
        partitions: dict[int, Partition],
        weights: Sequence[float],
        backend: str = "auto",
        norm_scales: Mapping[str, Sequence[float]] | None = None,
    ):
        self.setting, self.partitions, self.weights, self.backend = (
            setting,
            partitions,
            list(weights),
            backend,
        )
        parents = range(len(setting.parents))
        self._tables = [self._table(m) for m in parents]
        self._reads, self._writes = (
            [MapsOf(maps, m) for m in parents]
            for maps in (
                {k: p.readoff for k, p in partitions.items()},
                {k: p.writes for k, p in partitions.items()},
            )
        )
        self._read_tables = [self._behind(m, self._reads[m]) for m in parents]
        self._write_tables = [self._behind(m, self._writes[m]) for m in parents]
        self.widths = {space: p.width for space, p in partitions.items()}
        self._factors = score_factors(setting, self.widths)
        self._behind_norms = NormFactors(setting, norm_scales or {})

    def _table(self, parent: int) -> dict[int, Spread]:
        return {
            space: partition.of(parent)
            for space, partition in self.partitions.items()
            if parent in partition.labels
        }

    def _behind(self, parent: int, mapped: Iterable[int]) -> dict[int, Spread]:
        """The labels once dense maps have brought these spaces to their merged size."""
        widths = {space: self.partitions[space].width for space in mapped}
        done = {space: Spread(torch.arange(width), width) for space, width in widths.items()}
        return {**self._tables[parent], **done}

    def labels(self, expr: Expr, parent: int) -> tuple[Tensor, int]:
        """Merged position of every element of a skeleton dimension in one parent's sizes."""
        return dim_labels(expr, self._tables[parent])

    def write(self, expr: Expr, parent: int) -> Tensor | None:
        """[size, merged] float64: what a parent's features add; None where they are averaged."""
        return self._writes[parent].get(expr.space) if isinstance(expr, Leaf) else None

    def factor(self, parent: int, name: str) -> Factor | None:
        """What a parent's tensor is multiplied by, so that its attention scores are kept."""
        return self._factors[parent].get(name)

    def _mapped(
        self, part: _Part, exprs: Sequence[Expr], rows: Sequence[int], cols: Sequence[int]
    ) -> Tensor | None:
        """A parent's tensor as it reads and writes the features of dense maps."""
        tensor, table = part.share.tensor, self._tables[part.parent]
        if tensor is None:
            return None
        for dims, maps in ((cols, self._reads), (rows, self._writes)):
            matrices = maps[part.parent]
            for d in dims if matrices else ():
                tensor = through(tensor, d, exprs[d], table, matrices)
        return tensor

    def state(self) -> dict[str, Tensor]:
        """The merged network's traced tensors by name."""
        graph = self.setting.skeleton.graph
        merged = {name: self.tensor(name) for name in graph.tensors}
        merged.update(
            {alias: merged[name] for alias, name in graph.aliases.items() if name in merged}
        )
        return merged

    def tensor(self, name: str, block: range | None = None) -> Tensor:
        """One merged tensor, or the rows `block` of its first dimension."""
        graph = self.setting.skeleton.graph
        exprs = graph.tensors[name]
        parents = range(len(self.setting.parents))
        parts = [
            part
            for m in parents
            for unit in self._units(m, exprs)
            if (part := self._part(m, name, exprs, block, unit))
        ]
        rows = [d for d in range(len(exprs)) if (name, d) not in graph.consumed]
        summed = any(self.write(exprs[d], part.parent) is not None for d in rows for part in parts)
        if not summed:
            return self._project(name, parts, rows, block)
        if any(gain.tensor == name for gain in self.setting.skeleton.gains):
            return self._constant(name, parts)
        found = [self._project(name, [p], rows, block) for p in parts if p.share.tensor is not None]
        return torch.stack(found).sum(0)

    def _constant(self, name: str, parts: Sequence[_Part]) -> Tensor:
        """A scale that the layers behind it carry already: one number."""
        (expr,) = self.setting.skeleton.graph.tensors[name]
        known = next(part.share.tensor for part in parts if part.share.tensor is not None)
        return known[:1].expand(merged_size(expr, self.widths)).clone()

    def _project(
        self, name: str, parts: Sequence[_Part], rows: list[int], block: range | None
    ) -> Tensor:
        """The average of these parents within the clusters of rows, columns summed."""
        exprs = self.setting.skeleton.graph.tensors[name]
        cols = [d for d in range(len(exprs)) if d not in rows]
        tensors = [self._mapped(part, exprs, rows, cols) for part in parts]
        sizes = [merged_size(expr, self.widths) for expr in exprs]
        if block is not None:
            sizes[0] = len(block)
        plain = _trailing([all(_in_order(p.labels[d]) for p in parts) for d in range(len(exprs))])
        rows = [d for d in rows if d not in plain]
        cols = [d for d in cols if d not in plain]
        layout = _Layout(rows, cols, plain)
        row_labels = [product_labels([part.writes[d] for d in rows]) for part in parts]
        col_labels = [product_labels([part.reads[d] for d in cols]) for part in parts]
        kept = [_kept(found) for found, _ in row_labels]
        merged = project(
            [
                None if tensor is None else layout.fold(tensor)[rows_kept]
                for tensor, rows_kept in zip(tensors, kept, strict=True)
            ],
            [found[rows_kept] for (found, _), rows_kept in zip(row_labels, kept, strict=True)],
            [found for found, _ in col_labels],
            _count([sizes[d] for d in rows]),
            _count([sizes[d] for d in cols]),
            self._weights_of([part.share for part in parts]),
            self.backend,
        )
        merged = layout.unfold(merged, sizes)
        return self._fill(name, merged, row_labels, layout)

    def in_blocks(self, name: str, numbers: int) -> Iterator[tuple[range, Tensor]]:
        """One merged tensor in runs of rows of about so many numbers, where its rows allow."""
        graph = self.setting.skeleton.graph
        exprs = graph.tensors[name]
        sizes = [merged_size(expr, self.widths) for expr in exprs]
        dense = any(self.write(exprs[0], m) is not None for m in range(len(self.setting.parents)))
        whole = dense or (name, 0) in graph.consumed or len(sizes) < 2
        if whole or _count(sizes) <= numbers:
            yield range(sizes[0] if sizes else 1), self.tensor(name)
            return
        step = max(1, numbers // _count(sizes[1:]))
        for start in range(0, sizes[0], step):
            block = range(start, min(start + step, sizes[0]))
            yield block, self.tensor(name, block)

    def _units(self, parent: int, exprs: Sequence[Expr]) -> list[_Unit | None]:
        """The pieces that a parent's tensor is taken in: one, unless columns go elsewhere in every
        group of rows."""
        table = self._tables[parent]
        for dim, expr in enumerate(exprs):
            for path, leaf in located(expr):
                outer = table[leaf.space].outer if leaf.space in table else None
                rows = dim if outer is None else owner(exprs, dim, path, outer)
                if outer is not None and rows is not None and rows != dim:
                    numbers = unit_numbers(exprs[rows], outer, table)
                    return [
                        _Unit(outer, i, rows, numbers == i) for i in range(int(numbers.max()) + 1)
                    ]
        return [None]

    def _part(
        self,
        parent: int,
        name: str,
        exprs: Sequence[Expr],
        block: range | None,
        unit: _Unit | None,
    ) -> _Part | None:
        tables = (self._tables, self._write_tables, self._read_tables)
        known = {unit.space: unit.number} if unit else {}
        labels, writes, reads = ([dim_labels(e, t[parent], known) for e in exprs] for t in tables)
        masks = {unit.dim: unit.mask} if unit else {}
        if block is not None:
            first, _ = labels[0]
            inside = (first >= block.start) & (first < block.stop)
            labels[0] = first - block.start, len(block)
            masks[0] = inside & masks.get(0, inside)
        at = {d: mask.nonzero().flatten() for d, mask in masks.items()}
        for d, index in at.items():
            labels[d] = writes[d] = labels[d][0][index], labels[d][1]
        share = self.share(parent, name, at.pop(0, None))
        for d, index in at.items():
            if share and share.tensor is not None:
                share = Share(parent, share.tensor.index_select(d, index))
        return _Part(share, labels, writes, reads) if share else None

    def _weights_of(self, shares: Sequence[Share]) -> list[float]:
        """Their weights; equal where only parents of weight 0 have the tensor."""
        weights = [self.weights[s.parent] for s in shares]
        return weights if any(weights) else [1.0] * len(shares)

    def _fill(
        self, name: str, merged: Tensor, rows: list[tuple[Tensor, int]], layout: _Layout
    ) -> Tensor:
        """Variances of features that only absent parents have must not be zero."""
        if name.endswith("running_var") and merged.dim() == 1 and layout.rows:
            seen = torch.zeros(rows[0][1], dtype=torch.bool)
            for labels, _ in rows:
                seen[labels[labels >= 0]] = True
            merged[~seen] = 1
        return merged

    def share(self, parent: int, name: str, rows: Tensor | None = None) -> Share | None:
        """What one parent puts into one tensor, or those rows of it; None if it has no part."""
        link = self.setting.links[parent]
        if name in link.tensors:
            state, theirs = link.parent.state, link.tensors[name]
            found = state[theirs] if rows is None else state.rows(theirs, rows)
            factor = self.factor(parent, name)
            found = factor.of(found, rows) if factor else found
            return Share(parent, self._behind_norms.of(parent, name, found))
        share = self._absent(parent, name)
        if share is None or share.tensor is None or rows is None:
            return share
        return Share(parent, share.tensor[rows])

    def _absent(self, parent: int, name: str) -> Share | None:
        """The part of a parent without the tensor: what it passes the unit by."""
        setting, link = self.setting, self.setting.links[parent]
        slot = link.missing_slot(name)
        passage = setting.passages.get(slot) if slot else None
        if passage is None:
            return None
        layers = {x.node: x for x in setting.skeleton.layers if x.node in set(passage.layers)}
        additive = {t for x in layers.values() for t in (x.weight, x.bias, x.own_bias) if t}
        if passage.residual:
            if name in self._in_stream(passage):
                return Share(parent, self._identity(name, parent, link, setting.skeleton))
            for scale, offset in passage.scales:
                if name == scale:
                    like = setting.skeleton.state[name]
                    exprs = setting.skeleton.graph.tensors[name]
                    sizes = [size_of(expr, self._tables[parent]) for expr in exprs]
                    return Share(parent, like.new_full(sizes, -offset) if offset else None)
            return Share(parent, None) if name in additive else None
        return Share(parent, self._identity(name, parent, link, setting.skeleton))

    def _in_stream(self, passage: Passage) -> set[str]:
        """Tensors of norms and scales that stand in the stream itself."""
        skeleton = self.setting.skeleton
        nodes = [skeleton.nodes.nodes[name] for name in passage.carriers]
        known = tensor_names(skeleton.graph.program)
        norms = [
            a
            for node in nodes
            if op_name(node) in ("layer_norm", "mul")
            for a in node.all_input_nodes
        ]
        return {known[a.name] for a in norms if a.name in known}

    def _identity(self, name: str, parent: int, link: Correspondence, skeleton: Network) -> Tensor:
        exprs, like = skeleton.graph.tensors[name], skeleton.state[name]
        sizes = [size_of(expr, self._tables[parent]) for expr in exprs]
        if like.dim() == 1:
            if name.endswith(("running_mean", "bias")):
                return like.new_zeros(sizes)
            return like[:1].expand(sizes).clone() if name.endswith("var") else like.new_ones(sizes)
        index: tuple[Any, ...] = (slice(None), slice(None), *(size // 2 for size in sizes[2:]))
        tensor = like.new_zeros(sizes)
        tensor[index] = torch.eye(sizes[0], sizes[1], dtype=like.dtype)
        return tensor


@dataclass(frozen=True)
class _Unit:
    """One unit of an outer space: its elements of dimension `dim` are those of `mask`."""

    space: int
    number: int
    dim: int
    mask: Tensor


@dataclass(frozen=True)
class _Part:
    """A parent's share in a tensor, and where every dimension of it goes.

    Attributes:
        labels: per dimension, by the partitions.
        writes, reads: once dense maps have brought it to the merged size.
    """

    share: Share
    labels: list[tuple[Tensor, int]]
    writes: list[tuple[Tensor, int]]
    reads: list[tuple[Tensor, int]]

    @property
    def parent(self) -> int:
        """Whose share it is."""
        return self.share.parent


@dataclass(frozen=True)
class _Layout:
    """Brings a tensor to [rows, columns, rest] and back."""

    rows: list[int]
    cols: list[int]
    plain: list[int]

    def fold(self, tensor: Tensor) -> Tensor:
        order = [*self.rows, *self.cols, *self.plain]
        shape = tensor.shape
        r, c = (_count([shape[d] for d in dims]) for dims in (self.rows, self.cols))
        return tensor.permute(order).reshape(r, c, *(shape[d] for d in self.plain))

    def unfold(self, merged: Tensor, sizes: list[int]) -> Tensor:
        order = [*self.rows, *self.cols, *self.plain]
        inverse = [order.index(d) for d in range(len(order))]
        return merged.reshape([sizes[d] for d in order]).permute(inverse).contiguous()


def _count(sizes: Sequence[int]) -> int:
    total = 1
    for size in sizes:
        total *= int(size)
    return total


def _trailing(flags: Sequence[bool]) -> list[int]:
    """The last dimensions, as far as all are flagged: others would not stay where they are in
    memory."""
    last = max((d for d, flag in enumerate(flags) if not flag), default=-1)
    return list(range(last + 1, len(flags)))


def _in_order(labels: tuple[Tensor, int]) -> bool:
    """A dimension that stays as it is and needs no labels."""
    found, merged = labels
    return len(found) == merged and torch.equal(found, torch.arange(merged))


def _kept(labels: Tensor) -> Tensor | slice:
    """An index of the elements that have a merged position: all of them without a selection."""
    return slice(None) if bool((labels >= 0).all()) else labels >= 0
