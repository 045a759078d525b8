"""What the parents' activations say a value of the merged network should be."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hetmerge.batches import Call, comparable
from hetmerge.execution import Walker
from hetmerge.layers import Layer
from hetmerge.leastsquares import pick
from hetmerge.outputs import is_output
from hetmerge.partition import merged_size
from hetmerge.projection import Projector
from hetmerge.tracing.expr import Expr, Leaf
from hetmerge.vocabulary import vocabulary_spaces


@dataclass(frozen=True)
class Target:
    """The parents' part in one value of the merged network.

    Attributes:
        values: (parent, its values, one per batch) of every parent that counts; None stands for
            zero.
        width: merged features.
        factors: per parent, (merged position [d], averaging factor [d] float64) of its features;
            of an orthogonal map nothing.
        writes: of an orthogonal map, per parent, [d, width] float64: what its features add.
        scales: per parent, (mean, deviation) that its values are standardised by.
    """

    values: list[tuple[int, list[Tensor] | None]]
    width: int
    factors: dict[int, tuple[Tensor, Tensor]]
    writes: dict[int, Tensor]
    scales: dict[int, tuple[float, float]]

    @property
    def like(self) -> list[Tensor]:
        """A value of the target's positions, per batch."""
        return next(found for _, found in self.values if found is not None)

    def rows(self, positions: Tensor, spatial: int, batch: int) -> Tensor:
        """The parents' values, averaged within clusters: [images, width, positions]."""
        target: Tensor | None = None
        double = any(found and found[batch].dtype == torch.float64 for _, found in self.values)
        for m, batches in self.values:
            if batches is None:
                continue
            rows = pick(batches[batch], positions, spatial)
            rows = rows.to(torch.float64 if double else torch.float32)
            if m in self.scales:
                rows = (rows - self.scales[m][0]) / self.scales[m][1]
            if target is None:
                target = rows.new_zeros(rows.shape[0], self.width, rows.shape[2])
            if m in self.writes:
                target += self.writes[m].to(rows).T @ rows
                continue
            labels, factor = (x.to(rows.device) for x in self.factors[m])
            target.index_add_(1, labels, rows * factor.to(rows.dtype)[:, None])
        assert target is not None
        return target


class Targets:
    """Finds the parents' values for nodes of the merged network."""

    def __init__(
        self, projector: Projector, parents: Sequence[Walker], calls: Sequence[Call]
    ) -> None:
        self.projector, self.setting, self.parents = projector, projector.setting, parents
        self.calls = calls

    def known(self, node: str) -> bool:
        """Some parent computes the value of `node`."""
        return any(link.node(node) is not None for link in self.setting.links)

    def of(self, node: str, layer: Layer) -> Target:
        """The target of `node`, where the output of `layer` ends; some parent must compute it."""
        values: list[tuple[int, list[Tensor] | None]] = []
        for m, link in enumerate(self.setting.links):
            theirs = link.node(node)
            if theirs is not None:
                found = zip(self.parents[m].value(theirs), self.calls, strict=True)
                values.append((m, [comparable(value, call, m) for value, call in found]))
            elif (share := self.projector.share(m, layer.weight)) and share.tensor is None:
                values.append((m, None))
        members = [m for m, _ in values]
        expr = self.setting.skeleton.graph.values[node][layer.feature_dim]
        writes = {m: x for m in members if (x := self.projector.write(expr, m)) is not None}
        width = merged_size(expr, self.projector.widths)
        factors = {} if writes else self._averages(expr, width, members, layer.weight)
        scaled = self.is_head(layer) and not self._comparable(layer, members)
        scales = {m: scale_of(found) for m, found in values if found is not None} if scaled else {}
        return Target(values, width, factors, writes, scales)

    def is_head(self, layer: Layer) -> bool:
        """The layer writes the model's outputs."""
        graph = self.setting.skeleton.graph
        leaf = graph.values[layer.tail][layer.feature_dim]
        return (
            isinstance(leaf, Leaf) and leaf.space >= 0 and is_output(graph.spaces[leaf.space].pins)
        )

    def _comparable(self, layer: Layer, members: Sequence[int]) -> bool:
        """Every parent knows every merged output, in whatever order, or they are tokens.

        Logits of tokens are of one scale by themselves: their softmax is a distribution.
        """
        leaf = self.setting.skeleton.graph.values[layer.tail][layer.feature_dim]
        assert isinstance(leaf, Leaf)
        partition = self.projector.partitions[leaf.space]
        if leaf.space in vocabulary_spaces(self.setting.skeleton):
            return True
        return all(len(partition.labels[m].unique()) == partition.width for m in members)

    def _averages(
        self, expr: Expr, width: int, parents: Sequence[int], weight: str
    ) -> dict[int, tuple[Tensor, Tensor]]:
        """Per parent, (labels, averaging factor) of its features.

        Features that a selection did not keep have factor 0, and label 0 like any other number.
        Those of queries are scaled as the weights that make them are.
        """
        found = {m: self.projector.labels(expr, m)[0] for m in parents}
        shares = {
            m: torch.where(labels >= 0, float(self.projector.weights[m]), 0.0).double()
            for m, labels in found.items()
        }
        places = {m: labels.clamp_min(0) for m, labels in found.items()}
        mass = torch.zeros(width, dtype=torch.float64)
        for m, place in places.items():
            mass.index_add_(0, place, shares[m])
        mass = torch.where(mass > 0, mass, 1.0)
        scales = {m: f.values for m in parents if (f := self.projector.factor(m, weight))}
        return {
            m: (place, shares[m] / mass[place] * scales.get(m, 1.0)) for m, place in places.items()
        }


def scale_of(batches: Sequence[Tensor]) -> tuple[float, float]:
    """Mean and standard deviation of all of a parent's outputs."""
    count = sum(value.numel() for value in batches)
    mean = sum(float(value.sum(dtype=torch.float64)) for value in batches) / count
    square = sum(float((value.double() - mean).square().sum()) for value in batches)
    return mean, max((square / max(count - 1, 1)) ** 0.5, 1e-12)
