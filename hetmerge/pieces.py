"""A piece of an exported program as plain data, and the module that runs it.

Exported graphs hold nothing but operators, numbers and tensors, so a piece of one can be kept in
JSON and rebuilt without the class it came from, without generated code and without pickle.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.fx import Node

from hetmerge.errors import PlanError
from hetmerge.layers import tensor_names

_KINDS = {
    "dtype": torch.dtype,
    "layout": torch.layout,
    "memory_format": torch.memory_format,
}
_PYTHON = {"operator": operator, "math": math, "torch": torch}
_NUMBERS = {"add", "sub", "mul", "neg", "floordiv", "truediv", "mod", "pow", "getitem"}
_NUMBERS |= {"eq", "ne", "lt", "le", "gt", "ge", "floor", "ceil", "trunc", "sym_max", "sym_min"}
_NUMBERS |= {"sym_float", "sym_int", "sym_not", "sym_ite"}


@dataclass(frozen=True)
class Piece:
    """What `Piece.module` needs to run again: steps as plain data, and the tensors they read.

    Attributes:
        program: `inputs` and `outputs` (names), `steps` ([name, operator, args, kwargs]), `tensors`
            (name -> shape, dtype, whether it is learned).
        tensors: their values.
    """

    program: dict[str, Any]
    tensors: dict[str, Tensor]


def ancestors(ends: Sequence[Node], start: Node | None) -> set[Node]:
    """Everything the nodes `ends` need, themselves included, not looking behind `start`."""
    seen: set[Node] = set()
    stack = list(ends)
    while stack:
        node = stack.pop()
        if node not in seen:
            seen.add(node)
            stack.extend(node.all_input_nodes if node is not start else ())
    return seen


def extract(
    program: ExportedProgram,
    state: Mapping[str, Tensor],
    ends: Sequence[Node],
    start: Node | None = None,
) -> Piece:
    """The steps from the program's inputs, and the value of `start`, to the values `ends`.

    Args:
        state: parameters and buffers by name.
        start: given from outside, as the first input, where it is not None.

    Raises:
        PlanError: an operator cannot be written as plain data.
    """
    needed = ancestors(ends, start)
    names = tensor_names(program)
    constants = dict(program.graph_signature.inputs_to_lifted_tensor_constants)
    learned = set(program.graph_signature.inputs_to_parameters.values())
    places: dict[str, Any] = {}
    inputs: list[str] = []
    tensors: dict[str, Tensor] = {}
    steps = []
    if start is not None:
        inputs.append(start.name)
        places[start.name] = {"node": start.name}
    for node in program.graph.nodes:
        fqn = names.get(node.name) or constants.get(node.name)
        if node.op == "placeholder" and fqn is None:
            inputs.append(node.name)
            places[node.name] = {"node": node.name}
        elif node not in needed or node is start or node.op == "output":
            continue
        elif node.op == "placeholder":
            assert fqn is not None
            tensors[fqn] = state[fqn] if node.name in names else program.constants[fqn]
            places[node.name] = {"tensor": fqn}
        else:
            places[node.name] = {"node": node.name}
            args, kwargs = (_encode(v, places, node) for v in (node.args, dict(node.kwargs)))
            steps.append([node.name, _operator_name(node), args, kwargs])
    shapes = {
        name: {
            "shape": list(tensor.shape),
            "dtype": str(tensor.dtype).removeprefix("torch."),
            "learned": name in learned,
        }
        for name, tensor in tensors.items()
    }
    outputs = [end.name for end in ends]
    program_data = {"inputs": inputs, "outputs": outputs, "tensors": shapes, "steps": steps}
    return Piece(program_data, tensors)


class Steps(nn.Module):
    """Runs a piece; its tensors are those of `model`, under their own names.

    Args:
        program: of a :class:`Piece`; the tensors are zero until they are set.
    """

    def __init__(self, program: dict[str, Any]) -> None:
        super().__init__()
        self.program = program
        self.model = nn.Module()
        for name, spec in program["tensors"].items():
            _place(self.model, name, spec)
        self._steps = [(n, _operator(op), args, kwargs) for n, op, args, kwargs in program["steps"]]
        self._last = _last_uses(program)

    def forward(self, *inputs: Any) -> list[Any]:
        """The piece's outputs."""
        values = dict(zip(self.program["inputs"], inputs, strict=True))
        for (name, target, args, kwargs), unused in zip(self._steps, self._last, strict=True):
            values[name] = target(*self._decode(args, values), **self._decode(kwargs, values))
            for gone in unused:
                del values[gone]
        return [values[name] for name in self.program["outputs"]]

    def _decode(self, data: Any, values: Mapping[str, Any]) -> Any:
        if isinstance(data, list):
            return [self._decode(item, values) for item in data]
        if not isinstance(data, dict):
            return data
        if "map" in data:
            return {key: self._decode(item, values) for key, item in data["map"].items()}
        ((kind, name),) = data.items()
        if kind == "node":
            return values[name]
        if kind == "device":
            return torch.device(name)
        if kind != "tensor":
            return getattr(torch, name)
        path, _, leaf = name.rpartition(".")
        return getattr(self.model.get_submodule(path), leaf)


def _last_uses(program: dict[str, Any]) -> list[list[str]]:
    """Per step, the values that no later step reads."""
    kept, found = set(program["outputs"]), []
    for name, _, args, kwargs in reversed(program["steps"]):
        used = set(_nodes([args, kwargs])) | {name}
        found.append(sorted(used - kept))
        kept |= used
    return found[::-1]


def _nodes(data: Any) -> list[str]:
    if isinstance(data, list):
        return [name for item in data for name in _nodes(item)]
    if isinstance(data, dict):
        return [data["node"]] if "node" in data else _nodes(list(data.get("map", {}).values()))
    return []


def _place(root: nn.Module, name: str, spec: Mapping[str, Any]) -> None:
    *path, leaf = name.split(".")
    for part in path:
        if part not in root._modules:
            root.add_module(part, nn.Module())
        child = root._modules[part]
        assert child is not None
        root = child
    tensor = torch.zeros(spec["shape"], dtype=getattr(torch, spec["dtype"]))
    if spec["learned"]:
        root.register_parameter(leaf, nn.Parameter(tensor, tensor.is_floating_point()))
    else:
        root.register_buffer(leaf, tensor)


def _encode(value: Any, places: Mapping[str, Any], node: Node) -> Any:
    if isinstance(value, Node):
        return places[value.name]
    if isinstance(value, (list, tuple)):
        return [_encode(item, places, node) for item in value]
    if isinstance(value, dict):
        return {"map": {key: _encode(item, places, node) for key, item in value.items()}}
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, torch.device):
        return {"device": str(value)}
    for kind, of in _KINDS.items():
        if isinstance(value, of):
            return {kind: str(value).removeprefix("torch.")}
    raise PlanError(
        f"stop_at: operation {node.name!r} takes a {type(value).__name__}, which cannot be kept in "
        "a file; allowed: tensors, numbers, text, dtypes, devices"
    )


def _operator_name(node: Node) -> str:
    target: Any = node.target
    if isinstance(target, torch._ops.OpOverload) and target.namespace == "aten":
        return f"aten.{str(target).removeprefix('aten.')}"
    for prefix, module in _PYTHON.items():
        name = getattr(target, "__name__", "")
        if name in _NUMBERS and getattr(module, name, None) is target:
            return f"{prefix}.{name}"
    raise PlanError(
        f"stop_at: operation {node.name!r} ({target}) cannot be kept in a file; allowed: torch's "
        "own operators (aten) and arithmetic on sizes"
    )


def _operator(name: str) -> Any:
    """The operator of this name; nothing that writes, reads files or runs other code."""
    prefix, _, rest = name.partition(".")
    if prefix in _PYTHON and rest in _NUMBERS and hasattr(_PYTHON[prefix], rest):
        return getattr(_PYTHON[prefix], rest)
    packet, _, overload = rest.partition(".")
    found = getattr(getattr(torch.ops.aten, packet, None), overload, None)
    if prefix != "aten" or packet == "from_file" or found is None or found._schema.is_mutable:
        raise PlanError(f"operator: got {name!r}; allowed: functional operators of torch (aten)")
    return found
