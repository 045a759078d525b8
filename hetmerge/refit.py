"""One walk, front to back, that makes each layer of the merged network do what its parents did."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hetmerge.batches import Call, comparable, samples
from hetmerge.cutting import Cut
from hetmerge.fewrows import FewRows
from hetmerge.layers import Group, Layer, left_out
from hetmerge.leastsquares import (
    RIDGES,
    Normal,
    generator_of,
    held_out,
    inputs_of,
    pick,
    sample_positions,
)
from hetmerge.memory import trim
from hetmerge.network import Network, release
from hetmerge.ops.operand import constant
from hetmerge.progress import Progress
from hetmerge.projection import Projector
from hetmerge.repair import realise_norm, rescale
from hetmerge.softmax_head import fit_head, mixture
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
TRIMMED = 8  # every so many groups, freed memory goes back: mapping it again takes time


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


class Memory:
    """Fits of an earlier run that was stopped; a file keeps them, or nothing does."""

    def __init__(self, path: Path | None = None) -> None:
        self.path = path
        lines = path.read_text(encoding="utf-8").split("\n") if path and path.is_file() else []
        found = [json.loads(line) for line in lines[:-1]]
        self.known = {tuple(f["layers"]): Fit(**{**f, "layers": tuple(f["layers"])}) for f in found}

    def of(self, layers: tuple[str, ...]) -> list[Fit]:
        """The fit of these layers, if it is known."""
        return [self.known[layers]] if layers in self.known else []

    def add(self, fit: Fit) -> None:
        """Keep a fit; it is kept before the layers are written."""
        if self.path is not None and fit.layers not in self.known:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(asdict(fit)) + "\n")


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
        head: str = "ridge",
        cut: Cut | None = None,
        rows: int = MOST_ROWS,
        memory: Memory | None = None,
    ):
        self.merged, self.projector, self.setting = merged, projector, projector.setting
        self.refit, self.repair, self.ridge, self.progress = refit, repair, ridge, progress
        self.calls, self.seed, self.cut, self.rows, self.head = calls, seed, cut, rows, head
        self.memory = memory or Memory()
        self.steps = steps_of(merged, self.setting, refit=refit, cut=cut)
        self.walker = merged.walk(calls)
        self.parents = [link.parent.walk(calls, link.again) for link in self.setting.links]
        self.targets = Targets(projector, self.parents, calls)
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
        for number, step in enumerate(visit(steps, self.steps, self.walker, self.parents)):
            if self.refit:
                self._solve(step.group)
            else:
                for layer in step.group.layers:
                    rescale(self, layer)
            for layer in step.group.layers:
                realise_norm(self.merged, self.walker, layer)
            self.merged.state.commit()
            release([self.merged, *self.setting.parents])
            if number % TRIMMED == 0:
                trim()
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
        if all(state.is_final(layer.weight) for layer in layers):
            self.found.fits += self.memory.of(titles)
            return
        prior = read(layers, biased, state)
        target = self.targets.of(group.target, layers[0])
        wanted = rows_for(prior.shape[1], self.rows)
        folds = self._equations(group, target, bool(biased), wanted, prior.shape[1])
        ridge = self._ridge(group, folds, prior, bool(biased))
        total = Normal.sum(folds) if len(folds) > 1 else folds[0]
        weights = total.solve(prior, ridge, bool(biased))
        before, after = total.explained(prior), total.explained(weights)
        if self.head != "ridge" and self.targets.is_head(layers[0]):
            weights = self._probable(layers[0], target, weights[0], ridge)[None]
        fit = Fit(titles, total.rows, prior.shape[1], before, after, ridge)
        self.memory.add(fit)
        write(layers, biased, state, weights)
        self.found.fits.append(fit)

    def _equations(
        self, group: Group, target: Target, biased: bool, wanted: int, inputs: int
    ) -> list[Any]:
        """The system of a group, one part of the batches each; of rows, where they are fewer."""
        layers, state = group.layers, self.merged.state
        spatial, blocks = layers[0].spatial, blocks_of(layers)
        sources = [self._own(layer.source) for layer in layers]
        skip = self._own(group.skip) if group.skip else None
        count = len(sources[0])
        parts = folds_of(count) if self.ridge == "auto" else [range(count)]
        everything = sum(like.numel() for like in target.like)
        counts = [like[..., 0].numel() for like in target.like]
        few = not spatial and len(parts) == 1 and min(wanted, sum(counts)) < inputs
        generator = generator_of(self.seed, self.merged.nodes.order[layers[0].node])
        folds: list[Any] = []
        for part in parts:
            folds.append(FewRows() if few else Normal())
            for b in part:
                like = target.like[b]
                share = -(-wanted * like.numel() // everything)
                positions = sample_positions(like.shape, spatial, share, generator)
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

    def _own(self, node: str) -> list[Tensor]:
        """The merged network's values of a node, at the positions that count."""
        values = zip(self.walker.value(node), self.calls, strict=True)
        return [comparable(value, call, None) for value, call in values]

    def _probable(self, layer: Layer, target: Target, start: Tensor, ridge: float) -> Tensor:
        """The head's weights [p, r] (and bias) nearest to the parents' mixed probabilities."""
        nodes = {m: self.setting.links[m].node(layer.tail) for m, found in target.values if found}
        logits = {m: self.parents[m].value(node) for m, node in nodes.items() if node}
        weights = [self.projector.weights[m] for m in logits]
        expr = self.setting.skeleton.graph.values[layer.tail][layer.feature_dim]
        places = {m: self.projector.labels(expr, m) for m in logits}
        batches = []
        for b, (call, source) in enumerate(zip(self.calls, self._own(layer.source), strict=True)):
            mine = {m: values[b] for m, values in logits.items()}
            rows = source.reshape(-1, source.shape[-1])
            if layer.bias:
                rows = torch.cat([rows, rows.new_ones(len(rows), 1)], 1)
            batches.append((rows, mixture(self.head, call, mine, weights, places)))
        return fit_head(batches, start, ridge)

    def _ridge(self, group: Group, folds: list[Any], prior: Tensor, biased: bool) -> float:
        head = self.targets.is_head(group.layers[0])
        if self.ridge == "auto" and len(folds) > 1:
            errors = held_out(folds, prior, biased)
            return RIDGES[errors.index(min(errors))]
        ridge = RIDGE if self.ridge == "auto" else float(self.ridge)
        return ridge * HEAD_SHARE if head else ridge
