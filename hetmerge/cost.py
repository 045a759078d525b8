"""What refit or repair will cost, found by walking the same steps without any tensor."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.fx import Node
from torch.utils import _pytree as pytree

from hetmerge.batches import Call
from hetmerge.batches import samples as samples_of
from hetmerge.cutting import Cut
from hetmerge.execution import Schedule, Value, flat_inputs
from hetmerge.layers import CONVOLUTIONS, Group, Layer, op_name, tensor_names
from hetmerge.leastsquares import RIDGES
from hetmerge.network import Network
from hetmerge.setting import Setting
from hetmerge.steps import Step, steps_of, visit
from hetmerge.systems import System, blocks_of, folds_of, rows_for, shortage, title
from hetmerge.weights import KEPT


@dataclass(frozen=True)
class Cost:
    """What correcting a merged network takes.

    Attributes:
        samples: calibration inputs.
        systems: the linear systems that will be solved, front to back; none for repair.
        peak_bytes: most memory allocated at one time, over what the process holds before. The C
            library may keep more of what was freed.
        stream_bytes: the part of it that is kept activations.
        flops: floating-point operations of forward passes and systems (a product and its sum count
            as two).
    """

    samples: int
    systems: tuple[System, ...]
    peak_bytes: int
    stream_bytes: int
    flops: int

    @property
    def notes(self) -> list[str]:
        """What the calibration inputs are too few for."""
        return shortage(self.systems, self.samples)

    def summary(self) -> str:
        """The cost in words."""
        lines = [
            f"cost: {self.samples} calibration inputs, peak memory {size_of(self.peak_bytes)} "
            f"(activations {size_of(self.stream_bytes)}), {self.flops / 1e9:,.0f} GFLOP"
        ]
        if self.systems:
            most = max(self.systems, key=lambda s: s.inputs)
            lines.append(
                f"  refit of {len(self.systems)} layer groups; the widest, {most.layers[0]}: "
                f"{most.rows:,} rows for {most.inputs:,} inputs"
            )
        return "\n".join([*lines, *(f"  note: {note}" for note in self.notes)])


def estimate(
    merged: Network,
    setting: Setting,
    calls: Sequence[Call],
    *,
    refit: bool,
    auto: bool,
    cut: Cut | None = None,
) -> Cost:
    """The cost of correcting `merged` on these batches.

    Args:
        merged: the projected network.
        calls: the batches; none costs nothing.
        refit: the layers are solved (else rescaled).
        auto: the ridge is chosen by batches left out.
        cut: of a partial merge; the cost is that of its trunk.
    """
    networks = [merged, *setting.parents]
    again = [(), *(link.again for link in setting.links)]
    total = sum(samples_of(call) for call in calls)
    if not calls:
        return Cost(0, (), 0, 0, 0)
    growth = _numel(flat_inputs(*c) for c in calls) / _numel([flat_inputs(*setting.call)])
    meter = Meter()
    ledgers = [
        Ledger(network, growth, len(calls), meter, units)
        for network, units in zip(networks, again, strict=True)
    ]
    folds = len(folds_of(len(calls))) if auto else 1
    steps = steps_of(merged, setting, refit=refit, cut=cut)
    systems, flops = [], 0.0
    for step in visit(steps, steps, ledgers[0], ledgers[1:]):
        for ledger, names in zip(ledgers[1:], step.parents, strict=True):
            ledger.compute(names)
        for name in step.before:
            ledgers[0].compute([name])
        if refit:
            system, width = _system(merged, step.group, growth)
            blocks = blocks_of(step.group.layers)
            systems.append(system)
            flops += _flops(system, width, blocks, folds)
            meter.note(0, _scratch(ledgers[0], step, system, width, blocks, folds))
        ledgers[0].compute(step.after)
        for ledger in ledgers:
            ledger.read.clear()
    weights = sum(_weights(network) for network in networks) + _weights(merged)
    flops += sum(forward_flops(n, growth, units) for n, units in zip(networks, again, strict=True))
    return Cost(
        total,
        tuple(systems),
        int(meter.peak) + weights,
        int(meter.streams),
        int(flops),
    )


class Meter:
    """The most bytes at one time, over all ledgers."""

    def __init__(self) -> None:
        self.ledgers: list[Ledger] = []
        self.peak = self.streams = 0.0

    def note(self, new: float, scratch: float) -> None:
        """New values are made, with `scratch` bytes besides, while the others still exist."""
        streams = sum(ledger.bytes for ledger in self.ledgers) + new
        self.streams = max(self.streams, streams)
        self.peak = max(self.peak, streams + scratch)


class Ledger(Schedule):
    """A program whose values are the storages they would lie in: (key, bytes)."""

    def __init__(
        self,
        network: Network,
        growth: float,
        batches: int,
        meter: Meter,
        again: Sequence[frozenset[str]] = (),
    ) -> None:
        program = network.graph.program
        super().__init__(program, again)
        self.growth, self.batches, self.meter = growth, batches, meter
        self.read: dict[str, int] = {}  # weights that were read from disk in this step
        self.parameters = {} if network.in_memory else tensor_names(program)
        self.inputs = {
            _key(leaf)
            for node in program.graph.nodes
            if node.op == "placeholder"
            for leaf in _leaves(node)
        }
        meter.ledgers.append(self)

    @property
    def bytes(self) -> float:
        """Of all values that exist, each storage once, and of weights that came from disk."""
        values = dict(pair for value in self.values.values() for pair in value)
        return sum(values.values()) + sum(self.read.values())

    def make(self, name: str) -> list[Value]:
        node = self.graph[name]
        found = [
            (_key(leaf), leaf.untyped_storage().nbytes() * self.growth)
            for leaf in _leaves(node)
            if _key(leaf) not in self.inputs
        ]
        known = {key for value in self.values.values() for key, _ in value}
        new: float = sum(size for key, size in found if key not in known)
        scratch = 0.0
        for source in node.all_input_nodes:
            if source.name in self.parameters and op_name(node) != "embedding":
                size = sum(leaf.numel() * leaf.element_size() for leaf in _leaves(source))
                if size <= KEPT:
                    self.read[source.name] = size
                else:
                    scratch += size
        if op_name(node) in CONVOLUTIONS:  # oneDNN works on copies in a layout of its own
            scratch = (self.size(node.all_input_nodes[0].name) + new) / self.batches
        self.meter.note(new, scratch)
        return found

    def size(self, name: str) -> float:
        """Bytes of a node's value over all batches."""
        leaves = _leaves(self.graph[name])
        return sum(leaf.numel() * leaf.element_size() for leaf in leaves) * self.growth


def _leaves(node: Node) -> list[Tensor]:
    return [x for x in pytree.tree_leaves(node.meta.get("val")) if isinstance(x, Tensor)]


def _key(value: Tensor) -> int:
    return int(value.untyped_storage()._cdata)


def _system(merged: Network, group: Group, growth: float) -> tuple[System, int]:
    """The system of a group, and its outputs per block."""
    lead = group.layers[0]
    value = merged.nodes.nodes[group.target].meta["val"]
    features = value.shape[lead.feature_dim]
    inputs = sum(_inputs(merged, layer) for layer in group.layers)
    inputs += any(layer.bias for layer in group.layers)
    rows, wanted = int(value.numel() // features * growth), rows_for(inputs)
    if lead.spatial:  # as many positions in every image
        images = int(value.shape[0] * growth)
        wanted = images * max(1, wanted // images)
    rows = min(rows, wanted)
    names = tuple(title(layer.weight) for layer in group.layers)
    return System(names, rows, inputs), features // blocks_of(group.layers)


def _inputs(merged: Network, layer: Layer) -> int:
    weight = merged.model.get_parameter(layer.weight)
    return weight.numel() // weight.shape[1 if layer.transposed else 0]


def _flops(system: System, width: int, blocks: int, folds: int) -> float:
    """Half of X'X, X'T, and the solutions: one, and one per ridge for each fold left out."""
    n, p, r = system.rows, system.inputs, width
    solutions = 1 + (folds * len(RIDGES) if folds > 1 else 0)
    return blocks * (n * p * p + 2 * n * p * r + solutions * (p**3 / 3 + 4 * p * p * r))


def _scratch(
    ledger: Ledger, step: Step, system: System, width: int, blocks: int, folds: int
) -> float:
    """Bytes that solving one group needs besides the activations."""
    if folds == 1 and system.rows < system.inputs and not step.group.layers[0].spatial:
        beside = system.inputs + 3 * system.rows + 4 * width
        return 8 * blocks * (system.rows * beside + 4 * system.inputs * width)
    square = 8 * blocks * system.inputs**2
    batch = sum(
        ledger.size(layer.source)
        * math.prod(
            (n + 2 * pad) / n
            for n, pad in zip(
                _grid(ledger, layer.source, layer.spatial), layer.padding, strict=True
            )
        )
        for layer in step.group.layers
        if layer.spatial
    )
    targets = 3 * 4 * system.rows * width * blocks
    held = folds * square
    return held + max((batch + targets) / ledger.batches + 3 * square, 4 * square)


def _grid(ledger: Ledger, name: str, spatial: int) -> Sequence[int]:
    shape: torch.Size = ledger.graph[name].meta["val"].shape
    return shape[len(shape) - spatial :]


def forward_flops(network: Network, growth: float, again: Sequence[frozenset[str]] = ()) -> float:
    """Operations of all layers in one pass over the batches, in which some units run again."""
    found = 0.0
    for layer in network.layers:
        value = network.nodes.nodes[layer.node].meta["val"]
        times = 1 + sum(layer.node in unit for unit in again)
        found += 2.0 * value.numel() * growth * _inputs(network, layer) * times
    return found


def _numel(batches: Iterable[Sequence[Value]]) -> int:
    return sum(next(v.numel() for v in batch if isinstance(v, Tensor)) for batch in batches)


def _weights(network: Network) -> int:
    """Bytes of tensors that are in memory all the time."""
    if not network.in_memory:
        return 0
    return sum(t.numel() * t.element_size() for t in network.state.values())


def size_of(count: float) -> str:
    """Bytes in words."""
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"
