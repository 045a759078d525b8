"""A parent in canonical form: shortcuts explicit, norms' scales folded, traced and ready to run."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from hetmerge.errors import InputError, TraceError
from hetmerge.execution import Walker, flat_inputs
from hetmerge.layers import Layer, find_layers
from hetmerge.outline import ModuleNodes
from hetmerge.rotations import Rotation, find_gains, find_rotations, fold_gains
from hetmerge.shortcuts import expose_shortcuts
from hetmerge.tracing import export, trace

Call = tuple[tuple[Any, ...], dict[str, Any]]
_BatchNorm = nn.modules.batchnorm._BatchNorm


class Network:
    """One network as the pipeline sees it; the model it was made from is never touched.

    Attributes:
        model: a copy in eval mode whose parameter-free channel shortcuts are 1x1 convolutions and
            whose BatchNorms are `y = w * x + b` (running mean 0, variance 1 - eps); where one
            follows a layer, `w` is 1 and the layer's weight carries the scale. A learned scale that
            only linear layers read multiplies by 1, and their weights carry it.
        graph: its spaces.
        layers: its convolutions and linear maps.
        scales: BatchNorm prefix -> (|gamma|, beta) as they were before folding.
        gains: the learned scales that linear layers carry once they are folded.
        replaced: module paths of the shortcuts that became convolutions.
        source_parameters: the original's parameters, and whether they were trainable.
    """

    def __init__(self, model: nn.Module, call: Call, name: str = "model", *, fold: bool = True):
        self.name = name
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        self.source_parameters = {n: p.requires_grad for n, p in model.named_parameters()}
        check_finite(state_of(self.model), name)
        self.replaced = expose_shortcuts(self.model, call)
        self.state = state_of(self.model)
        self.graph = trace(self.model, *call)
        self.layers = find_layers(self.graph.program)
        self.nodes = ModuleNodes.of(list(self.graph.program.graph.nodes))
        self.scales: dict[str, tuple[Tensor, Tensor]] = {}
        self.gains = find_gains(self.graph, self.layers)
        if fold:
            self._fold()
        self._programs: dict[tuple[Any, ...], ExportedProgram] = {_key(call): self.graph.program}

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

    def walk(self, batches: Sequence[Call]) -> Walker:
        """A walker over these batches; programs for new input shapes are exported once."""
        programs = [self.program_for(call) for call in batches]
        return Walker(programs, self.state, [flat_inputs(*call) for call in batches])

    def program_for(self, call: Call) -> ExportedProgram:
        """The exported program for inputs of these shapes."""
        key = _key(call)
        if key not in self._programs:
            try:
                self._programs[key] = export(self.model, *call)
            except TraceError as error:
                first = str(error).splitlines()[0]
                raise InputError(f"batches: one does not fit: {first}") from error
        return self._programs[key]

    def layer_of(self, weight: str) -> Layer | None:
        """The layer that owns this weight."""
        return next((layer for layer in self.layers if layer.weight == weight), None)


def as_call(batch: Any) -> Call:
    """A batch as (args, kwargs): a tensor, a tuple or list of them, or a mapping of names."""
    if isinstance(batch, Tensor):
        return (batch,), {}
    if isinstance(batch, Mapping):
        return (), dict(batch)
    if isinstance(batch, (tuple, list)):
        return tuple(batch), {}
    raise InputError(
        f"batches: got an item of type {type(batch).__name__}; "
        "allowed: a tensor, a tuple of what the model takes, or a dict of its keyword arguments"
    )


def samples(call: Call) -> int:
    """Number of samples in a batch: the first dimension of its first tensor."""
    values = (*call[0], *call[1].values())
    return next((len(v) for v in values if isinstance(v, Tensor) and v.dim()), 0)


def state_of(model: nn.Module) -> dict[str, Tensor]:
    """Every parameter and buffer by name, tied ones under each of their names."""
    pairs: list[tuple[str, Tensor]] = [*model.named_parameters(remove_duplicate=False)]
    pairs += model.named_buffers(remove_duplicate=False)
    return {name: tensor.detach() for name, tensor in pairs}


def check_finite(state: Mapping[str, Tensor], name: str) -> None:
    """Reject weights with NaN or infinity, naming the first tensor."""
    for key, tensor in state.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
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
