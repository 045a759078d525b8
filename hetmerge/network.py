"""A parent in canonical form: shortcuts explicit, norms' scales folded, traced and ready to run."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from hetmerge.attention import Attention, find_attentions
from hetmerge.batches import Call, call_for
from hetmerge.errors import InputError, TraceError
from hetmerge.execution import Walker, flat_inputs
from hetmerge.layers import Layer, find_layers
from hetmerge.lazy import Checkpoint
from hetmerge.memory import trim
from hetmerge.norms import Norm, find_norms
from hetmerge.outline import ModuleNodes, Stage
from hetmerge.rotations import Rotation, find_gains, find_rotations, fold_gains
from hetmerge.shortcuts import expose_shortcuts
from hetmerge.tracing import export
from hetmerge.tracing.build import spaces_of
from hetmerge.tracing.exporting import place_on
from hetmerge.weights import Resident, State, tensors_of

_BatchNorm = nn.modules.batchnorm._BatchNorm


class Network:
    """One network as the pipeline sees it; the model it was made from is never touched.

    Attributes:
        model: a copy in eval mode whose parameter-free channel shortcuts are 1x1 convolutions and
            whose BatchNorms are `y = w * x + b` (running mean 0, variance 1 - eps); where one
            follows a layer, `w` is 1 and the layer's weight carries the scale. A learned scale that
            only linear layers read multiplies by 1, and their weights carry it. Of a checkpoint, or
            with a state given: on the meta device.
        state: its tensors by name.
        member: which parent it is, and so which inputs of a batch it takes; None: the merged one's.
        graph: its spaces.
        layers: its convolutions and linear maps.
        scales: BatchNorm prefix -> (|gamma|, beta) as they were before folding.
        gains: the learned scales that linear layers carry once they are folded.
        replaced: module paths of the shortcuts that became convolutions.
        source_parameters: the original's parameters, and whether they were trainable.

    Args:
        program: what a model of this configuration runs on the call, where it is known already.
    """

    def __init__(
        self,
        model: nn.Module | Checkpoint,
        call: Call,
        name: str = "model",
        *,
        fold: bool = True,
        state: State | None = None,
        member: int | None = None,
        program: ExportedProgram | None = None,
    ):
        self.name, self.member = name, member
        if isinstance(model, Checkpoint):
            state = model.state
        module = model.module if isinstance(model, Checkpoint) else model
        self.source_parameters = {n: p.requires_grad for n, p in module.named_parameters()}
        self.model = copy.deepcopy(module).eval().requires_grad_(False)
        self.replaced: tuple[str, ...] = ()
        self.in_memory = state is None
        if state is None:
            check_finite(state_of(self.model), name)
            self.replaced = expose_shortcuts(self.model, call_for(call, member))
            state = state_of(self.model)
        else:
            self.model.to("meta")
            cast_parameters(self.model, state.dtype)
        self.state = state
        call = call_for(call, member)
        self.graph = spaces_of(self.model, program or export(self.model, *call), *call)
        self.layers = find_layers(self.graph.program)
        self.nodes = ModuleNodes.of(list(self.graph.program.graph.nodes))
        self.scales: dict[str, tuple[Tensor, Tensor]] = {}
        self.gains = find_gains(self.graph, self.layers)
        if fold:
            self._fold()
        self._programs: dict[tuple[Any, ...], ExportedProgram] = {}
        self._programs[_key(call)] = self._runnable(self.graph.program)

    @property
    def numbers(self) -> int:
        """Numbers in its tensors, tied ones under each of their names."""
        return sum(t.numel() for _, t in tensors_of(self.model))

    def _runnable(self, program: ExportedProgram) -> ExportedProgram:
        """A program traced on the meta device computes where its tensors are."""
        if not self.in_memory:
            place_on(program, self.state.device)
        return program

    def _fold(self) -> None:
        norms = {n: m for n, m in self.model.named_modules() if isinstance(m, _BatchNorm)}
        by_norm = {layer.norm: layer for layer in self.layers if layer.norm in norms}
        for prefix, norm in norms.items():
            if norm.affine and norm.running_mean is not None:
                self.scales[prefix] = (norm.weight.abs(), norm.bias.clone())
                fold_norm(norm, by_norm.get(prefix), self.state)
        fold_gains(self.gains, self.state)

    @cached_property
    def rotations(self) -> dict[int, Rotation]:
        """The spaces without a preferred basis."""
        return find_rotations(self.graph, self.layers, self.gains, self.state)

    @cached_property
    def norms(self) -> tuple[Norm, ...]:
        """Its divisions by a root mean square, and what carries their scales."""
        folded = {gain.node: gain.layers for gain in self.gains}
        return find_norms(self.graph, self.layers, folded)

    @cached_property
    def attentions(self) -> dict[str, Attention]:
        """Its products of queries and keys by node."""
        return find_attentions(self.graph, self.layers)

    def walk(self, batches: Sequence[Call], again: Iterable[frozenset[str]] = ()) -> Walker:
        """A walker over these batches; programs for new input shapes are exported once.

        Args:
            again: the nodes of every unit that may run more than once.
        """
        calls = [call_for(batch, self.member) for batch in batches]
        programs = [self.program_for(call) for call in calls]
        return Walker(programs, self.state, [flat_inputs(*call) for call in calls], again)

    def program_for(self, call: Call) -> ExportedProgram:
        """The exported program for inputs of these shapes."""
        key = _key(call)
        if key not in self._programs:
            try:
                self._programs[key] = self._runnable(export(self.model, *call))
            except TraceError as error:
                first = str(error).splitlines()[0]
                raise InputError(f"batches: one does not fit: {first}") from error
        return self._programs[key]

    def layer_of(self, weight: str) -> Layer | None:
        """The layer that owns this weight."""
        return next((layer for layer in self.layers if layer.weight == weight), None)


def outputs_of(
    network: Network, stages: Sequence[Stage], calls: Sequence[Call]
) -> Iterator[list[Tensor]]:
    """A network's outputs on one batch after the other.

    The units of a checkpoint are read once for all batches, one at a time; what comes behind them,
    such as an output head, once for each, so that the outputs of only one batch exist.
    """
    ends = network.graph.outputs
    for group in [[call] for call in calls] if network.in_memory else [calls]:
        walker = network.walk(group)
        walker.hold(ends)
        for unit in network.nodes.in_turn(stages):
            walker.compute([unit.output])
            release([network])
        reached = dict(walker.values)
        for i, call in enumerate(group):
            last = network.walk([call])
            for name, values in reached.items():
                last.give(name, [values[i]])
            last.hold(ends)
            last.compute(ends)
            release([network])
            yield [last.values[name][0] for name in ends]


def release(networks: Iterable[Network]) -> None:
    """Forget the weights that can be read again."""
    freed = False
    for network in networks:
        network.state.release()
        freed = freed or not network.in_memory
    if freed:
        trim()


def state_of(model: nn.Module) -> State:
    """The tensors of a module, as they are in memory."""
    return Resident((name, tensor.detach()) for name, tensor in tensors_of(model))


def cast_parameters(model: nn.Module, dtype: torch.dtype) -> None:
    """Give the parameters, not the buffers, the type that a program computes with."""
    for parameter in model.parameters():
        if parameter.is_floating_point():
            parameter.data = parameter.data.to(dtype)


def check_finite(state: Mapping[str, Tensor], name: str) -> None:
    """Reject weights with NaN or infinity, naming the first tensor."""
    for key, tensor in state.items():
        known = tensor.is_floating_point() and tensor.device.type != "meta"
        if known and not bool(torch.isfinite(tensor).all()):
            raise InputError(
                f"{name}: tensor {key!r} holds NaN or infinity; weights must be finite"
            )


def fold_norm(norm: _BatchNorm, layer: Layer | None, state: Mapping[str, Tensor]) -> None:
    """Make an eval BatchNorm `y = w x + b`; move `w`, and the layer's bias, into the layer."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    scale = norm.weight / (norm.running_var.double() + norm.eps).sqrt()
    shift = norm.bias - norm.running_mean * scale
    if layer is not None:
        if layer.own_bias is not None:
            bias = state[layer.own_bias]
            shift = shift + bias * scale
            bias.zero_()
        weight = state[layer.weight]
        rows = -1 if layer.transposed else 0
        shape = [1] * weight.dim()
        shape[rows] = -1
        weight.mul_(scale.reshape(shape))
        scale = torch.ones_like(scale)
    norm.weight.copy_(scale)
    norm.bias.copy_(shift)
    norm.running_mean.zero_()
    norm.running_var.fill_(1 - norm.eps)


def _key(call: Call) -> tuple[Any, ...]:
    return tuple(
        (tuple(v.shape), v.dtype) if isinstance(v, Tensor) else repr(v) for v in flat_inputs(*call)
    )
