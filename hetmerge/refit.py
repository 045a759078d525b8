"""One walk, front to back, that makes each layer of the merged network do what its parents did."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from hetmerge.cutting import Cut
from hetmerge.layers import Group, left_out
from hetmerge.leastsquares import RIDGES, Normal, held_out, inputs_of, pick, sample_positions
from hetmerge.network import Call, Network, samples
from hetmerge.ops.operand import constant
from hetmerge.progress import Progress
from hetmerge.projection import Projector
from hetmerge.repair import realise_norm, rescale
from hetmerge.steps import steps_of, visit
from hetmerge.systems import (
    MOST_ROWS,
    RIDGE,
    System,
    blocks_of,
    folds_of,
    read,
    rows_for,
    shortage,
    title,
    write,
)
from hetmerge.targets import Target, Targets

HEAD_SHARE = 0.1  # a head's ridge over that of the other layers


@dataclass(frozen=True)
class Fit(System):
    """How well one layer group reproduces its targets.

    Attributes:
        before, after: share of the targets' variance explained before and after refit.
        ridge: that was used.
    """

    before: float
    after: float
    ridge: float


@dataclass
class Refit:
    """What a walk did: fits front to back; layer -> why it was left as it was; remarks."""

    fits: list[Fit] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


class Fitter:
    """Corrects a projected network on calibration inputs, without labels or gradients.

    Every group of layers is reached with the merged network's own activations in front of it, and
    the parents' activations as targets: their pre-activations, averaged within clusters; where the
    layers end in a residual addition, what is missing from the merged network's own stream.
    Of a partial merge it corrects the trunk, and keeps what everybody is at the cut.
    """

    def __init__(
        self,
        merged: Network,
        projector: Projector,
        calls: Sequence[Call],
        *,
        refit: bool,
        repair: str,
        ridge: float | str,
        seed: int,
        progress: Progress,
        cut: Cut | None = None,
        rows: int = MOST_ROWS,
    ):
        self.merged, self.projector, self.setting = merged, projector, projector.setting
        self.refit, self.repair, self.ridge, self.progress = refit, repair, ridge, progress
        self.calls, self.seed, self.cut, self.rows = calls, seed, cut, rows
        self.generator = torch.Generator().manual_seed(seed)
        self.steps = steps_of(merged, self.setting, refit=refit, cut=cut)
        self.walker = merged.walk(calls)
        self.parents = [network.walk(calls) for network in self.setting.parents]
        self.targets = Targets(projector, self.parents)
        self.samples = sum(samples(call) for call in calls)
        self.found = Refit()
        if cut is not None:
            self.walker.hold([cut.unit.output])
            pairs = zip(self.parents, self.setting.parents, cut.own, strict=True)
            for walker, network, unit in pairs:
                walker.hold([unit.output, *network.graph.outputs])

    def start(self, node: str, values: list[Tensor]) -> None:
        """Give the merged network's value of a node; only the layers behind it are corrected."""
        order = self.merged.nodes.order
        self.steps = [s for s in self.steps if order[s.group.layers[0].node] > order[node]]
        self.walker.give(node, values)

    def run(self) -> Refit:
        """Walk over all groups in order; the merged network's state is changed in place."""
        if self.refit:
            groups = [step.group for step in self.steps]
            trunk = self.cut.trunk if self.cut else None
            missing = left_out(self.merged.graph.program, groups, trunk)
            self.found.left_out = {title(name): why for name, why in missing.items()}
            if self.ridge == "auto" and len(self.walker.programs) < 2:
                self.found.notes.append(
                    "ridge: 'auto' needs two or more batches to choose by; with one batch "
                    f"{RIDGE:g} was taken"
                )
        steps = self.progress.track(self.steps, "refit of layers")
        for step in visit(steps, self.steps, self.walker, self.parents):
            if self.refit:
                self._solve(step.group)
            else:
                for layer in step.group.layers:
                    rescale(self, layer)
            for layer in step.group.layers:
                realise_norm(self.merged, self.walker, layer)
        self.found.notes += shortage(self.found.fits, self.samples)
        return self.found

    def _solve(self, group: Group) -> None:
        layers, state = group.layers, self.merged.state
        titles = tuple(title(layer.weight) for layer in layers)
        if not self.targets.known(group.target):
            why = "no parent computes a value that it could reproduce"
            self.found.left_out.update(dict.fromkeys(titles, why))
            return
        biased = [layer for layer in layers if layer.bias]
        prior = read(layers, biased, state)
        target = self.targets.of(group.target, layers[0])
        wanted = rows_for(prior.shape[1], self.rows)
        folds = self._equations(group, target, bool(biased), wanted)
        ridge = self._ridge(group, folds, prior, bool(biased))
        total = Normal.sum(folds)
        weights = total.solve(prior, ridge, bool(biased))
        write(layers, biased, state, weights)
        before, after = total.explained(prior), total.explained(weights)
        self.found.fits.append(Fit(titles, total.rows, prior.shape[1], before, after, ridge))

    def _equations(self, group: Group, target: Target, biased: bool, wanted: int) -> list[Normal]:
        """Normal equations of a group, one part of the batches each."""
        layers, state = group.layers, self.merged.state
        spatial, blocks = layers[0].spatial, blocks_of(layers)
        sources = [self.walker.value(layer.source) for layer in layers]
        skip = self.walker.value(group.skip) if group.skip else None
        count = len(sources[0])
        parts = folds_of(count) if self.ridge == "auto" else [range(count)]
        everything = sum(like.numel() for like in target.like)
        folds = []
        for part in parts:
            folds.append(Normal())
            for b in part:
                like = target.like[b]
                share = -(-wanted * like.numel() // everything)
                positions = sample_positions(like.shape, spatial, share, self.generator)
                rows = target.rows(positions, spatial, b)
                if skip is not None:
                    rows = rows - pick(skip[b], positions, spatial).to(rows)
                operands = []
                for layer, x in zip(layers, sources, strict=True):
                    shape = like.shape[2:]
                    mine = inputs_of(layer, x[b], state[layer.weight], positions, shape)
                    operands.append([o for o in mine for _ in range(blocks // layer.groups)])
                if biased:
                    one = constant(rows.new_ones(1), rows.shape[0] * rows.shape[2])
                    operands.append([one] * blocks)
                folds[-1].add(list(zip(*operands, strict=True)), rows)
        return folds

    def _ridge(self, group: Group, folds: list[Normal], prior: Tensor, biased: bool) -> float:
        head = self.targets.is_head(group.layers[0])
        if self.ridge == "auto" and len(folds) > 1:
            errors = held_out(folds, prior, biased)
            return RIDGES[errors.index(min(errors))]
        ridge = RIDGE if self.ridge == "auto" else float(self.ridge)
        return ridge * HEAD_SHARE if head else ridge
