"""A program whose last layer can be repeated."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import fx, nn
from torch.export import ExportedProgram
from torch.export.graph_signature import ExportGraphSignature, InputKind, InputSpec, TensorArgument
from torch.fx import Node

_NUMBERED = re.compile(r"(.*?)(?:_(\d+))?")
_PREFIX = {InputKind.PARAMETER: "p_", InputKind.BUFFER: "b_"}


class Unlike(Exception):
    """The layers do not repeat."""


@dataclass
class _Layer:
    """Placeholders and nodes of one layer, in order."""

    placeholders: list[Node]
    nodes: list[Node]


class Pattern:
    """A program of which the last layer can be repeated.

    Args:
        program: of a network with at least two layers.
        path: of the list of layers.
    """

    def __init__(self, program: ExportedProgram, path: str) -> None:
        self.program, self.path = program, path
        self.specs = {_name(spec): spec for spec in program.graph_signature.input_specs}
        self.nodes = list(program.graph.nodes)
        self.layer_of = {node: self._number(node) for node in self.nodes}
        count = 1 + max((i for i in self.layer_of.values() if i is not None), default=-1)
        self.layers = [self._layer(i) for i in range(count)]
        sizes = [len(layer.nodes) for layer in self.layers[-2:]]
        if count < 2 or not sizes[0] == sizes[1] > 0:
            raise Unlike
        self.steps = dict(map(self._step, *(layer.nodes for layer in self.layers[-2:])))

    def _number(self, node: Node) -> int | None:
        """Which layer a node belongs to."""
        stack = node.meta.get("nn_module_stack") or {}
        spec = self.specs.get(node.name) if node.op == "placeholder" else None
        paths = [spec.target or ""] if spec else [str(path) for path, _ in stack.values()]
        found = [re.match(rf"{re.escape(self.path)}\.(\d+)(?:[.@]|$)", path) for path in paths]
        return next((int(match[1]) for match in found if match), None)

    def _layer(self, number: int) -> _Layer:
        mine = [node for node in self.nodes if self.layer_of[node] == number]
        return _Layer(
            [node for node in mine if node.op == "placeholder"],
            [node for node in mine if node.op != "placeholder"],
        )

    def _step(self, before: Node, last: Node) -> tuple[str, int]:
        """By how much the numbers in the names of one kind of nodes grow with every layer."""
        (kind, first), (other, second) = _numbered(before.name), _numbered(last.name)
        if kind != other:
            raise Unlike
        return kind, second - first

    def times(self, count: int, model: nn.Module) -> ExportedProgram:
        """The program of a network with so many layers.

        Args:
            model: that network, whose tensors the program names.
        """
        return _Copy(self, count).program(model)


class _Copy:
    """A program with more layers, while it is made."""

    def __init__(self, pattern: Pattern, count: int) -> None:
        self.pattern, self.count = pattern, count
        self.last = len(pattern.layers) - 1
        self.graph = fx.Graph()
        self.specs: list[InputSpec] = []
        self.outside: dict[Node, Node] = {}  # what is copied once
        self.repeats: dict[int, dict[Node, Node]] = {}  # number -> the last layer's nodes
        self.place = {node: i for layer in pattern.layers for i, node in enumerate(layer.nodes)}

    def program(self, model: nn.Module) -> ExportedProgram:
        pattern, source = self.pattern, self.pattern.program
        layer, block = pattern.layers[self.last], list[Node]()
        for node in pattern.nodes:
            if block and node not in layer.placeholders:
                self._repeat_placeholders(block)
                block = []
            if node.op == "placeholder":
                self.outside[node] = self._placed(node, pattern.specs[node.name])
                block += [node] if node in layer.placeholders else []
            elif pattern.layer_of[node] is None:
                number = self.count - 1 if layer.nodes[-1] in self.outside else self.last
                self.outside[node] = self._copied(node, self._renamed(node, number), number)
            else:
                self.outside[node] = self._copied(node, node.name, self.last)
            if node is layer.nodes[-1]:
                self._repeat_nodes(layer.nodes)
        return ExportedProgram(
            root=source.graph_module,
            graph=self.graph,
            graph_signature=self._signature(),
            state_dict=dict(model.state_dict(keep_vars=True)),
            range_constraints=source.range_constraints,
            module_call_graph=source.module_call_graph,
            example_inputs=source.example_inputs,
            constants=self._constants(model),
            verifiers=source.verifiers,
        )

    def _placed(self, node: Node, spec: InputSpec) -> Node:
        """A placeholder like this one, for another tensor."""
        made = self.graph.placeholder(_name(spec))
        made.meta = dict(node.meta)
        self.specs.append(spec)
        return made

    def _repeat_placeholders(self, block: Sequence[Node]) -> None:
        """Those of one kind for every further layer."""
        path = self.pattern.path
        for number in range(self.last + 1, self.count):
            for node in block:
                spec = self.pattern.specs[node.name]
                prefix = _PREFIX.get(spec.kind)
                if prefix is None or node.name != _placeholder(prefix, spec.target):
                    raise Unlike
                within = str(spec.target)[len(f"{path}.{self.last}.") :]
                target = f"{path}.{number}.{within}"
                own = replace(spec, arg=TensorArgument(_placeholder(prefix, target)), target=target)
                self.repeats.setdefault(number, {})[node] = self._placed(node, own)

    def _repeat_nodes(self, nodes: Sequence[Node]) -> None:
        for number in range(self.last + 1, self.count):
            mine = self.repeats.setdefault(number, {})
            for node in nodes:
                mine[node] = self._copied(node, self._renamed(node, number), number)

    def _copied(self, node: Node, name: str, number: int) -> Node:
        """A node as one of layer `number`, or what follows that layer."""
        args, kwargs = fx.map_arg((node.args, node.kwargs), lambda n: self._read(n, node, number))
        made = self.graph.create_node(node.op, node.target, args, kwargs, name)
        made.meta = dict(node.meta)
        if number > self.last and (stack := node.meta.get("nn_module_stack")):
            old, new = (f"{self.pattern.path}.{i}" for i in (self.last, number))
            made.meta["nn_module_stack"] = {
                key: (_moved(path, old, new), kind) for key, (path, kind) in stack.items()
            }
        return made

    def _read(self, node: Node, reader: Node, number: int) -> Node:
        """What the copy of `reader` reads in the place of a node."""
        layer, own = self.pattern.layer_of[node], self.pattern.layer_of[reader]
        if number <= self.last or layer is None:
            return self.outside[node]
        if layer == self.last:
            return self.repeats[number][node]
        if own is None or layer != self.last - 1 or node.op == "placeholder":
            raise Unlike  # something collects what all layers give, or reads a layer's weights
        same = self.pattern.layers[self.last].nodes[self.place[node]]
        return self.repeats[number - 1][same] if number - 1 > self.last else self.outside[same]

    def _result(self, node: Node) -> Node:
        """What behind all layers stands in the place of a node."""
        layer = self.pattern.layer_of[node]
        if layer is None or node.op == "placeholder":
            return self.outside[node]
        if layer != self.last:
            raise Unlike
        return self.repeats[self.count - 1][node]

    def _renamed(self, node: Node, number: int) -> str:
        kind, place = _numbered(node.name)
        place += self.pattern.steps.get(kind, 0) * (number - self.last)
        return f"{kind}_{place}" if place else kind

    def _signature(self) -> ExportGraphSignature:
        outputs = []
        for spec in self.pattern.program.graph_signature.output_specs:
            if isinstance(spec.arg, TensorArgument):
                (node,) = (n for n in self.pattern.nodes if n.name == spec.arg.name)
                spec = replace(spec, arg=TensorArgument(self._result(node).name))
            outputs.append(spec)
        return ExportGraphSignature(self.specs, outputs)

    def _constants(self, model: nn.Module) -> dict[str, Any]:
        """Those of the pattern, and buffers that are not stored."""
        found = dict(self.pattern.program.constants)
        for spec in self.specs:
            if spec.kind is InputKind.BUFFER and not spec.persistent and spec.target:
                found[spec.target] = model.get_buffer(spec.target)
        return found


def _name(spec: InputSpec) -> str:
    return str(getattr(spec.arg, "name", ""))


def _placeholder(prefix: str, target: str | None) -> str:
    """What torch.export calls the input of a tensor."""
    return prefix + re.sub(r"[^a-zA-Z0-9]", "_", str(target)).lower()


def _numbered(name: str) -> tuple[str, int]:
    """A node's name without its number, and the number."""
    match = _NUMBERED.fullmatch(name)
    assert match is not None
    return match[1], int(match[2] or 0)


def _moved(path: str, old: str, new: str) -> str:
    return new + path[len(old) :] if re.match(rf"{re.escape(old)}(?:[.@]|$)", path) else path
