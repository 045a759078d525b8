"""Every tensor of every parent through the partitions: the weights of the merged network."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hetmerge.branches import Passage
from hetmerge.correspondence import Correspondence
from hetmerge.layers import op_name, tensor_names
from hetmerge.network import Network
from hetmerge.ops.project import project
from hetmerge.partition import Partition, dim_labels, merged_size, product_labels, read_off
from hetmerge.setting import Setting
from hetmerge.tracing.expr import Expr


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
    ):
        self.setting, self.partitions, self.weights, self.backend = (
            setting,
            partitions,
            list(weights),
            backend,
        )
        self._tables = [self._table(m) for m in range(len(setting.parents))]
        self._readoff = [
            {space: p.readoff[m] for space, p in partitions.items() if m in p.readoff}
            for m in range(len(setting.parents))
        ]
        self._read_tables = [
            {**table, **{k: (torch.arange(x.shape[1]), x.shape[1]) for k, x in readoff.items()}}
            for table, readoff in zip(self._tables, self._readoff, strict=True)
        ]
        self.widths = {space: p.width for space, p in partitions.items()}

    def _table(self, parent: int) -> dict[int, tuple[Tensor, int]]:
        return {
            space: (partition.labels[parent], partition.width)
            for space, partition in self.partitions.items()
            if parent in partition.labels
        }

    def labels(self, expr: Expr, parent: int) -> tuple[Tensor, int]:
        """Merged position of every element of a skeleton dimension in one parent's sizes."""
        return dim_labels(expr, self._tables[parent])

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
        parts = [part for m in parents if (part := self._part(m, name, exprs, block))]
        sizes = [merged_size(expr, self.widths) for expr in exprs]
        if block is not None:
            sizes[0] = len(block)
        dims = range(len(exprs))
        plain = [d for d in dims if all(_in_order(part.labels[d]) for part in parts)]
        rows = [d for d in dims if d not in plain and (name, d) not in graph.consumed]
        cols = [d for d in dims if d not in plain and (name, d) in graph.consumed]
        layout = _Layout(rows, cols, plain)
        row_labels = [product_labels([part.labels[d] for d in rows]) for part in parts]
        col_labels = [product_labels([part.reads[d] for d in cols]) for part in parts]
        tensors = [self._read(part.share, exprs, cols) for part in parts]
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
        if (name, 0) in graph.consumed or len(sizes) < 2 or _count(sizes) <= numbers:
            yield range(sizes[0] if sizes else 1), self.tensor(name)
            return
        step = max(1, numbers // _count(sizes[1:]))
        for start in range(0, sizes[0], step):
            block = range(start, min(start + step, sizes[0]))
            yield block, self.tensor(name, block)

    def _part(
        self, parent: int, name: str, exprs: Sequence[Expr], block: range | None
    ) -> _Part | None:
        labels = [self.labels(expr, parent) for expr in exprs]
        reads = [dim_labels(expr, self._read_tables[parent]) for expr in exprs]
        index = None
        if block is not None:
            first, _ = labels[0]
            index = ((first >= block.start) & (first < block.stop)).nonzero().flatten()
            labels[0] = (first[index] - block.start, len(block))
        share = self.share(parent, name, index)
        return _Part(share, labels, reads) if share else None

    def _read(self, share: Share, exprs: Sequence[Expr], cols: Sequence[int]) -> Tensor | None:
        """A parent's tensor as it is read from the features that selections kept."""
        tensor, readoff = share.tensor, self._readoff[share.parent]
        if tensor is not None and readoff:
            for d in cols:
                tensor = read_off(tensor, d, exprs[d], self._tables[share.parent], readoff)
        return tensor

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
        setting, link = self.setting, self.setting.links[parent]
        if name in link.tensors:
            state, theirs = link.parent.state, link.tensors[name]
            return Share(parent, state[theirs] if rows is None else state.rows(theirs, rows))
        slot = link.missing_slot(name)
        passage = setting.passages.get(slot) if slot else None
        if passage is None:
            return None
        layers = {x.node: x for x in setting.skeleton.layers if x.node in set(passage.layers)}
        additive = {t for x in layers.values() for t in (x.weight, x.bias, x.own_bias) if t}
        if passage.residual:
            if name in self._stream_norms(passage):
                return Share(parent, self._identity(name, parent, link, setting.skeleton))
            return Share(parent, None) if name in additive else None
        return Share(parent, self._identity(name, parent, link, setting.skeleton))

    def _stream_norms(self, passage: Passage) -> set[str]:
        """Tensors of norms that stand in the stream itself."""
        skeleton = self.setting.skeleton
        nodes = [skeleton.nodes.nodes[name] for name in passage.carriers]
        known = tensor_names(skeleton.graph.program)
        norms = [a for node in nodes if op_name(node) == "layer_norm" for a in node.all_input_nodes]
        return {known[a.name] for a in norms if a.name in known}

    def _identity(self, name: str, parent: int, link: Correspondence, skeleton: Network) -> Tensor:
        exprs, like = skeleton.graph.tensors[name], skeleton.state[name]
        sizes = [len(self.labels(e, parent)[0]) for e in exprs]
        if like.dim() == 1:
            if name.endswith(("running_mean", "bias")):
                return like.new_zeros(sizes)
            return like[:1].expand(sizes).clone() if name.endswith("var") else like.new_ones(sizes)
        index: tuple[Any, ...] = (slice(None), slice(None), *(size // 2 for size in sizes[2:]))
        tensor = like.new_zeros(sizes)
        tensor[index] = torch.eye(sizes[0], sizes[1], dtype=like.dtype)
        return tensor


@dataclass(frozen=True)
class _Part:
    """A parent's share in a tensor, and where every dimension of it goes when written and read."""

    share: Share
    labels: list[tuple[Tensor, int]]
    reads: list[tuple[Tensor, int]]


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


def _in_order(labels: tuple[Tensor, int]) -> bool:
    """A dimension that stays as it is and needs no labels."""
    found, merged = labels
    return len(found) == merged and torch.equal(found, torch.arange(merged))


def _kept(labels: Tensor) -> Tensor | slice:
    """An index of the elements that have a merged position: all of them without a selection."""
    return slice(None) if bool((labels >= 0).all()) else labels >= 0
