"""What the inputs and outputs of an exported program are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind, OutputKind, TensorArgument
from torch.utils import _pytree as pytree

from hetmerge.errors import TraceError
from hetmerge.tracing.conventions import declared
from hetmerge.tracing.operators import named_arguments


@dataclass(frozen=True)
class Program:
    """A functional program, and what its inputs and outputs are."""

    exported: ExportedProgram
    learned: dict[str, str]  # placeholder -> parameter or learned buffer
    labels: dict[str, str]  # other placeholders -> what they are
    ties: dict[str, str]  # tied parameter -> the name listed first
    overlaps: dict[str, str]  # parameter that shares memory in another way -> reason
    results: dict[str, str]  # node whose axes are pinned -> label
    outputs: tuple[str, ...]  # nodes of the declared outputs
    reached: frozenset[str]  # placeholders that some result depends on

    def label(self, placeholder: str) -> tuple[str, bool]:
        """What a placeholder without parameters is, and whether it is data."""
        label = self.labels.get(placeholder, "a constant")
        return label, label.startswith("input")


def read(model: nn.Module, exported: ExportedProgram) -> Program:
    """Read the signature of an exported model."""
    signature = exported.graph_signature
    learned = dict(signature.inputs_to_parameters)
    statistics = _statistics(exported)
    labels: dict[str, str] = {}
    for spec in signature.input_specs:
        name = getattr(spec.arg, "name", "")
        if spec.kind is InputKind.BUFFER and name in statistics and spec.target:
            learned[name] = spec.target
        elif spec.kind is InputKind.BUFFER:
            labels[name] = f"buffer '{spec.target}'"
        elif spec.kind is InputKind.USER_INPUT:
            labels[name] = f"input '{name}'"
    results, outputs = _results(model, exported)
    ties, overlaps = _shared(model)
    reached = _reached(exported, [getattr(s.arg, "name", "") for s in signature.output_specs])
    return Program(exported, learned, labels, ties, overlaps, results, outputs, reached)


def _statistics(exported: ExportedProgram) -> set[str]:
    """Buffers that are learned: the running statistics of normalisation layers."""
    found = set()
    for node in exported.graph.nodes:
        if node.op == "call_function":
            args = named_arguments(node, node.args, node.kwargs)
            for key in ("running_mean", "running_var"):
                if isinstance(args.get(key), fx.Node):
                    found.add(args[key].name)
    return found


def _results(model: nn.Module, exported: ExportedProgram) -> tuple[dict[str, str], tuple[str, ...]]:
    names: list[Any] = []
    labels: dict[str, str] = {}
    for spec in exported.graph_signature.output_specs:
        name = spec.arg.name if isinstance(spec.arg, TensorArgument) else None
        if spec.kind is OutputKind.USER_OUTPUT:
            names.append(name)
        elif name is not None:
            labels[name] = f"written to {spec.target}"
    spec_tree = exported.call_spec.out_spec
    tree = pytree.tree_unflatten(names, spec_tree) if spec_tree is not None else names
    outputs = tuple(name for name in declared(tree, model) if name is not None)
    if not outputs:
        raise TraceError(f"{type(model).__name__} returns no tensor")
    for i, name in enumerate(outputs):
        labels[name] = "the output" if len(outputs) == 1 else f"output {i}"
    return labels, outputs


def _shared(model: nn.Module) -> tuple[dict[str, str], dict[str, str]]:
    """Tied tensors (one object or one view under several names) and other overlaps in memory."""
    first: dict[Any, str] = {}
    ties: dict[str, str] = {}
    storages: dict[int, list[str]] = {}
    tensors = [
        *model.named_parameters(remove_duplicate=False),
        *model.named_buffers(remove_duplicate=False),
    ]
    for name, tensor in tensors:
        storage = tensor.untyped_storage()._cdata
        view = (storage, tensor.storage_offset(), tuple(tensor.shape), tensor.stride())
        if view in first:
            ties[name] = first[view]
            continue
        first[view] = name
        storages.setdefault(storage, []).append(name)
    return ties, _overlaps(storages, dict(tensors))


def _overlaps(storages: dict[int, list[str]], tensors: dict[str, torch.Tensor]) -> dict[str, str]:
    found: dict[str, str] = {}
    for names in storages.values():
        spans = {name: _span(tensors[name]) for name in names} if len(names) > 1 else {}
        for name, (start, stop) in spans.items():
            others = [n for n, (a, b) in spans.items() if n != name and a < stop and start < b]
            if others:
                found[name] = f"shares memory with {', '.join(others)}"
    return found


def _span(tensor: torch.Tensor) -> tuple[int, int]:
    start = int(tensor.storage_offset())
    if tensor.numel() == 0:
        return start, start
    steps = zip(tensor.shape, tensor.stride(), strict=True)
    return start, start + 1 + sum((n - 1) * stride for n, stride in steps)


def _reached(exported: ExportedProgram, outputs: list[str]) -> frozenset[str]:
    nodes = {node.name: node for node in exported.graph.nodes}
    waiting = [nodes[name] for name in outputs if name in nodes]
    seen = set(waiting)
    while waiting:
        for node in waiting.pop().all_input_nodes:
            if node not in seen:
                seen.add(node)
                waiting.append(node)
    return frozenset(node.name for node in seen)
