"""One walk, front to back, that makes each layer of the merged network do what its parents did."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hetmerge.layers import Group, Layer, find_groups
from hetmerge.leastsquares import Normal, inputs_of, pick, sample_positions
from hetmerge.network import Call, Network
from hetmerge.ops.operand import constant
from hetmerge.outputs import is_output
from hetmerge.progress import Progress
from hetmerge.projection import Projector
from hetmerge.repair import realise_norm, rescale
from hetmerge.tracing.expr import Leaf

ROWS = 60_000
RIDGE, HEAD_RIDGE = 1e-2, 1e-3


@dataclass(frozen=True)
class Fit:
    """How well one layer group reproduces its targets: explained variance before and after."""

    layers: tuple[str, ...]
    before: float
    after: float


class Fitter:
    """Corrects a projected network on calibration inputs, without labels or gradients.

    Every group of layers is reached with the merged network's own activations in front of it, and
    the parents' activations as targets: their pre-activations, averaged within clusters; where the
    layers end in a residual addition, what is missing from the merged network's own stream.
    """

    def __init__(
        self,
        merged: Network,
        projector: Projector,
        calls: Sequence[Call],
        *,
        refit: bool,
        repair: str,
        seed: int,
        progress: Progress,
        rows: int = ROWS,
    ):
        self.rows = rows
        self.merged, self.projector, self.setting = merged, projector, projector.setting
        self.refit, self.repair, self.progress = refit, repair, progress
        self.generator = torch.Generator().manual_seed(seed)
        self.groups = find_groups(merged.graph.program, merged.layers)
        self.walker = merged.walk(calls)
        self.parents = [network.walk(calls) for network in self.setting.parents]
        self.fits: list[Fit] = []

    def run(self) -> list[Fit]:
        """Walk over all groups in order; the merged network's state is changed in place."""
        needs = [self._needs(group) for group in self.groups]
        for mine, theirs in needs:
            self.walker.hold(mine)
            for walker, names in zip(self.parents, theirs, strict=True):
                walker.hold(names)
        work = list(zip(self.groups, needs, strict=True))
        for group, (mine, theirs) in self.progress.track(work, "refit of layers"):
            if self.refit:
                self._solve(group)
            else:
                for layer in group.layers:
                    rescale(self, layer)
            for layer in group.layers:
                realise_norm(self.merged, self.walker, layer)
            self.walker.release(mine)
            for walker, names in zip(self.parents, theirs, strict=True):
                walker.release(names)
        return self.fits

    def _needs(self, group: Group) -> tuple[list[str], list[list[str]]]:
        mine = [layer.source for layer in group.layers] + [layer.tail for layer in group.layers]
        mine += [layer.node for layer in group.layers] + ([group.skip] if group.skip else [])
        wanted = [group.target] + [layer.tail for layer in group.layers]
        theirs = [
            [n for name in wanted if (n := link.node(name)) is not None]
            for link in self.setting.links
        ]
        return mine, theirs

    def is_head(self, layer: Layer) -> bool:
        """The layer writes the model's outputs."""
        leaf = self.merged.graph.values[layer.tail][layer.feature_dim]
        spaces = self.merged.graph.spaces
        return isinstance(leaf, Leaf) and leaf.space >= 0 and is_output(spaces[leaf.space].pins)

    def parent_values(self, node: str, layer: Layer) -> list[tuple[int, list[Tensor] | None]]:
        """(parent, values) of every parent that counts at `node`; None stands for zero."""
        found: list[tuple[int, list[Tensor] | None]] = []
        for m, link in enumerate(self.setting.links):
            theirs = link.node(node)
            if theirs is not None:
                found.append((m, self.parents[m].value(theirs)))
            elif (share := self.projector.share(m, layer.weight)) and share.tensor is None:
                found.append((m, None))
        return found

    def averages(
        self, node: str, dim: int, parents: Sequence[int]
    ) -> tuple[int, dict[int, tuple[Tensor, Tensor]]]:
        """Merged width at `node`, and per parent (labels, averaging factor) of its features.

        Features that a selection did not keep have factor 0, and label 0 like any other number.
        """
        expr = self.setting.skeleton.graph.values[node][dim]
        labels = {m: self.projector.labels(expr, m) for m in parents}
        width = next(iter(labels.values()))[1]
        shares = {
            m: torch.where(found >= 0, float(self.projector.weights[m]), 0.0).double()
            for m, (found, _) in labels.items()
        }
        mass = torch.zeros(width, dtype=torch.float64)
        for m, (found, _) in labels.items():
            mass.index_add_(0, found.clamp_min(0), shares[m])
        mass = torch.where(mass > 0, mass, 1.0)
        places = {m: found.clamp_min(0) for m, (found, _) in labels.items()}
        return width, {m: (place, shares[m] / mass[place]) for m, place in places.items()}

    def _solve(self, group: Group) -> None:
        layers = group.layers
        if len(layers) > 1 and any(layer.groups > 1 for layer in layers):
            return
        lead, state = layers[0], self.merged.state
        sources = [self.walker.value(layer.source) for layer in layers]
        skip = self.walker.value(group.skip) if group.skip else None
        values = self.parent_values(group.target, lead)
        width, factors = self.averages(group.target, lead.feature_dim, [m for m, _ in values])
        head = self.is_head(lead)
        shifts = _standards(values) if head and not self._same_outputs(lead) else {}
        biased = [layer for layer in layers if layer.bias]
        normal = Normal()
        wanted = self.rows // len(sources[0])
        for b in range(len(sources[0])):
            like = next(v for _, v in values if v is not None)[b]
            positions = sample_positions(like.shape, lead.spatial, wanted, self.generator)
            target = _target(values, factors, shifts, width, positions, lead.spatial, b)
            if skip is not None:
                target = target - pick(skip[b], positions, lead.spatial).to(target)
            grid = like.shape[2:]
            parts = [
                inputs_of(layer, x[b], state[layer.weight], positions, grid)
                for layer, x in zip(layers, sources, strict=True)
            ]
            if biased:
                parts.append([constant(target.new_ones(1), len(target))] * lead.groups)
            normal.add(list(zip(*parts, strict=True)), target)
        prior = _read(layers, biased, state)
        weights = normal.solve(prior, HEAD_RIDGE if head else RIDGE, bool(biased))
        _write(layers, biased, state, weights)
        names = tuple(layer.weight.removesuffix(".weight") for layer in layers)
        self.fits.append(Fit(names, normal.explained(prior), normal.explained(weights)))

    def _same_outputs(self, layer: Layer) -> bool:
        """Every parent's outputs stand at the same merged outputs."""
        leaf = self.setting.skeleton.graph.values[layer.tail][layer.feature_dim]
        assert isinstance(leaf, Leaf)
        labels = list(self.projector.partitions[leaf.space].labels.values())
        return all(torch.equal(labels[0], other) for other in labels[1:])


def _standards(values: list[tuple[int, list[Tensor] | None]]) -> dict[int, tuple[float, float]]:
    """Per parent, mean and standard deviation of all its outputs: one scalar pair."""
    found = {}
    for m, batches in values:
        if batches is not None:
            joined = torch.cat([v.flatten() for v in batches]).double()
            found[m] = (float(joined.mean()), float(joined.std().clamp_min(1e-12)))
    return found


def _target(
    values: list[tuple[int, list[Tensor] | None]],
    factors: dict[int, tuple[Tensor, Tensor]],
    shifts: dict[int, tuple[float, float]],
    width: int,
    positions: Tensor,
    spatial: int,
    batch: int,
) -> Tensor:
    """The parents' values at these positions, averaged within clusters: [rows, width]."""
    target: Tensor | None = None
    double = any(found and found[batch].dtype == torch.float64 for _, found in values)
    for m, batches in values:
        if batches is None:
            continue
        rows = pick(batches[batch], positions, spatial).to(torch.float64 if double else torch.float)
        if m in shifts:
            rows = (rows - shifts[m][0]) / shifts[m][1]
        labels, factor = (x.to(rows.device) for x in factors[m])
        if target is None:
            target = rows.new_zeros(len(rows), width)
        target.index_add_(1, labels, rows * factor.to(rows.dtype))
    assert target is not None
    return target


def _read(layers: Sequence[Layer], biased: Sequence[Layer], state: dict[str, Tensor]) -> Tensor:
    """Current weights of a group as [blocks, p, r], the sum of its biases as the last row."""
    blocks = layers[0].groups
    parts = []
    for layer in layers:
        weight = state[layer.weight].double()
        weight = weight.T if layer.transposed else weight
        parts.append(weight.reshape(blocks, weight.shape[0] // blocks, -1).transpose(1, 2))
    if biased:
        biases = {name for layer in biased for name in (layer.bias, layer.own_bias) if name}
        total = torch.stack([state[name].double() for name in sorted(biases)]).sum(0)
        parts.append(total.reshape(blocks, 1, -1))
    return torch.cat(parts, 1)


def _write(
    layers: Sequence[Layer], biased: Sequence[Layer], state: dict[str, Tensor], weights: Tensor
) -> None:
    start = 0
    for layer in layers:
        target = state[layer.weight]
        count = (target[0] if not layer.transposed else target[:, 0]).numel()
        block = weights[:, start : start + count].transpose(1, 2)
        flat = block.reshape(-1, count)
        target.copy_((flat.T if layer.transposed else flat).reshape(target.shape))
        start += count
    if biased:
        for layer in biased:
            for name in (layer.bias, layer.own_bias):
                if name:
                    state[name].zero_()
        assert biased[0].bias is not None
        state[biased[0].bias].copy_(weights[:, -1].flatten())
