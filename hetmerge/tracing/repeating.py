"""Deep networks of equal layers: exported with a few of them, and the pattern repeated.

What an export takes grows with the layers, a tenth of a second for each of a Llama. So a network is
exported with its first and its last layer, and the last one is repeated. That this is right is seen
from a second export, with a layer from the middle between them: it must be what repetition gives,
node by node. And from what the network does between its layers, which must be the same everywhere,
and layers must not look at their number. Where anything is different, all layers are exported.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import fx, nn
from torch.export import ExportedProgram

from hetmerge.tracing.between import repeats_between
from hetmerge.tracing.pattern import Pattern

LEAST = 7  # layers from which on repeating takes less than exporting all of them
_PLAIN = (bool, int, float, str, type(None), torch.dtype, torch.device)


def export_repeated(
    model: nn.Module,
    inputs: tuple[Any, Any],
    export: Callable[[nn.Module], ExportedProgram],
) -> ExportedProgram | None:
    """The program of a network, from those of shallower ones; None where its layers do not repeat.

    Args:
        model: a module on the meta device, as it is to be called; left as it was.
        inputs: (args, kwargs) on the meta device.
        export: makes the program of a module for these inputs.
    """
    path = equal_layers(model)
    if path is None:
        return None
    layers = list(model.get_submodule(path).children())
    few, more = ([layers[i] for i in at] for at in ((0, -1), (0, len(layers) // 2, -1)))
    shallower = partial(_with_layers, model, path)
    try:
        if not repeats_between(model, path, shallower, inputs):
            return None
        pattern, three = Pattern(export(shallower(few)), path), export(shallower(more))
        if describe(pattern.times(len(more), shallower(more))) != describe(three):
            return None
        return pattern.times(len(layers), model)
    except Exception:  # of a network that expects all of its layers, or whose layers do not repeat
        return None


def describe(program: ExportedProgram) -> list[Any]:
    """Everything that two programs must have in common to be the same one."""
    nodes = [
        (
            node.op,
            node.name,
            str(node.target),
            fx.map_arg((node.args, node.kwargs), lambda n: f"%{n.name}"),
            _kind(node.meta.get("val")),
            [path for path, _ in (node.meta.get("nn_module_stack") or {}).values()],
        )
        for node in program.graph.nodes
    ]
    signature = program.graph_signature
    return [nodes, signature.input_specs, signature.output_specs, sorted(program.constants)]


def equal_layers(model: nn.Module) -> str | None:
    """Path of the one list of many layers that differ in nothing but their weights and number.

    Lists inside it, such as the experts of every layer, do not count.
    """
    found: list[str] = []
    for path, module in model.named_modules():
        many = type(module) is nn.ModuleList and len(module) >= LEAST
        inside = any(path.startswith(f"{outer}.") for outer in found)
        if many and not inside and _alike(list(module.children())):
            found.append(path)
    return found[0] if len(found) == 1 else None


def _alike(layers: Sequence[nn.Module]) -> bool:
    tensors = [id(tensor) for layer in layers for m in layer.modules() for _, tensor in _tensors(m)]
    if len(set(tensors)) < len(tensors):
        return False  # layers that share weights
    first, *others = (list(layer.named_modules()) for layer in layers)
    return all(
        len(other) == len(first)
        and all(_same(*pair, number) for pair in zip(first, other, strict=True))
        for number, other in enumerate(others, 1)
    )


def _same(first: tuple[str, nn.Module], other: tuple[str, nn.Module], number: int) -> bool:
    """A module of the first layer, and that of another one; an attribute may be its number."""
    (name, a), (other_name, b) = first, other
    mine, theirs = vars(a), vars(b)
    if name != other_name or type(a) is not type(b) or mine.keys() != theirs.keys():
        return False
    if any(m._forward_hooks or m._forward_pre_hooks for m in (a, b)):
        return False
    if [(n, p.shape, p.dtype) for n, p in _tensors(a)] != [
        (n, p.shape, p.dtype) for n, p in _tensors(b)
    ]:
        return False
    return all(
        _equal(value, theirs[key]) or (key.endswith("idx") and (value, theirs[key]) == (0, number))
        for key, value in mine.items()
        if not key.startswith("_")
    )


def _equal(value: Any, other: Any) -> bool:
    """One thing, or plain data that says the same."""
    if isinstance(value, (tuple, list)) and type(value) is type(other):
        return len(value) == len(other) and all(map(_equal, value, other))
    if isinstance(value, partial) and isinstance(other, partial):
        return (value.func, value.args, value.keywords) == (other.func, other.args, other.keywords)
    return value is other or (
        isinstance(value, _PLAIN) and type(value) is type(other) and value == other
    )


def _tensors(module: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    yield from module.named_parameters(recurse=False)
    yield from module.named_buffers(recurse=False)


def _with_layers(model: nn.Module, path: str, layers: Sequence[nn.Module]) -> nn.Module:
    """The network with other layers; layers and tensors are shared with the model."""
    own = model.get_submodule(path).children()
    shared = [*own, *(t for m in model.modules() for _, t in _tensors(m))]
    shallow = copy.deepcopy(model, {id(thing): thing for thing in shared})
    shallow.set_submodule(path, nn.ModuleList(layers))
    return shallow


def _kind(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return tuple(value.shape), value.dtype, value.device
    return type(value)
