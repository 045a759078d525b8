"""Run an exported program node by node over several batches, keeping only what is needed."""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram
from torch.fx import GraphModule, Node
from torch.utils import _pytree as pytree

from hetmerge.weights import State

Value = Any


class Schedule:
    """Which values of a program exist while it is run on demand.

    Every graph node holds one value per batch. A value is made when first asked for and freed when
    its last reader has run, unless it is held. A unit may be told to run again: what is held of it
    is then what it reads, and its values are made anew when they are asked for after that.

    Args:
        program: any program of the graph.
        again: the nodes of every unit that may run more than once.
    """

    def __init__(self, program: ExportedProgram, again: Iterable[frozenset[str]] = ()) -> None:
        self.graph = {n.name: n for n in program.graph.nodes}
        self.order = {name: i for i, name in enumerate(self.graph)}
        self.values: dict[str, list[Value]] = {}
        self._held = Counter[str]()
        self._done: set[str] = set()
        self._unit = {name: unit for unit in again for name in unit}
        self._reads = {unit: self._read_by(unit) for unit in set(self._unit.values())}
        self._wanted = Counter[frozenset[str]]()  # holds on values of each unit
        self._reopened: set[str] = set()  # made before, to be made again
        self._live = _live(program)
        self._readers = {
            name: sum(u.name in self._live for u in n.users) for name, n in self.graph.items()
        }

    def make(self, name: str) -> list[Value]:
        """The values of a node whose inputs exist, one per batch."""
        raise NotImplementedError

    def value(self, name: str) -> list[Value]:
        """The values of node `name`, one per batch; computes what it needs."""
        self.compute([name])
        return self.values[name]

    def give(self, name: str, values: list[Value]) -> None:
        """Take these values, one per batch, for node `name` instead of computing it."""
        self.values[name] = values
        self._done.add(name)

    def hold(self, names: Iterable[str]) -> None:
        """Keep the values of these nodes, or what their unit needs to run again, until `release`
        has been called as often."""
        for name in names:
            self._held.update(self._kept(name))
            if unit := self._unit.get(name):
                self._wanted[unit] += 1

    def release(self, names: Iterable[str]) -> None:
        """Undo one `hold` and free what nobody needs any more."""
        for name in names:
            if unit := self._unit.get(name):
                self._wanted[unit] -= 1
                if not self._wanted[unit]:
                    self._close(unit)
            self._held.subtract(self._kept(name))
            for kept in (*self._kept(name), name):
                self._collect(kept)

    def compute(self, names: Sequence[str]) -> None:
        """Run every ancestor of `names` that has not run yet, in graph order."""
        self._held.update(names)
        for name in self._pending(names):
            self._run(name)
        self._held.subtract(names)

    def forget(self, name: str, *, itself: bool = True) -> None:
        """Drop what was computed from node `name` (and its own value), to be computed again."""
        stack = [self.graph[name]] if itself else list(self.graph[name].users)
        while stack:
            node = stack.pop()
            if node.name not in self._done:
                continue
            self._done.discard(node.name)
            self.values.pop(node.name, None)
            self._count(node.name, 1)
            stack.extend(node.users)

    def reached(self) -> dict[str, Any]:
        """What has run and which values exist; for :meth:`restore` of one made in the same way."""
        counts = [
            [
                name in self._done,
                name in self._reopened,
                self._readers[name],
                self._held[name],
                self._wanted[self._unit.get(name, frozenset())],
            ]
            for name in self.order
        ]
        return {"counts": torch.tensor(counts, dtype=torch.int32), "values": self.values}

    def restore(self, reached: Mapping[str, Any]) -> None:
        """Go on from where another one was."""
        self.values = dict(reached["values"])
        rows = dict(zip(self.order, reached["counts"].tolist(), strict=True))
        self._done = {name for name, row in rows.items() if row[0]}
        self._reopened = {name for name, row in rows.items() if row[1]}
        self._readers = {name: row[2] for name, row in rows.items()}
        self._held = Counter({name: row[3] for name, row in rows.items()})
        self._wanted = Counter({unit: rows[name][4] for name, unit in self._unit.items()})

    def _pending(self, names: Sequence[str]) -> list[str]:
        stack, need = [n for n in names if n not in self.values], set()
        while stack:
            name = stack.pop()
            if name in need:
                continue
            if name in self._done:
                self._reopen(name)
            need.add(name)
            for source in self.graph[name].all_input_nodes:
                if source.op == "call_function" and source.name not in self.values:
                    stack.append(source.name)
        return sorted(need, key=self.order.__getitem__)

    def _run(self, name: str) -> None:
        self.values[name] = self.make(name)
        self._finish(name)

    def _finish(self, name: str) -> None:
        """A node has run, or need not run: what it reads has one reader less to wait for."""
        self._done.add(name)
        self._reopened.discard(name)
        self._count(name, -1)
        for source in self.graph[name].all_input_nodes:
            self._collect(source.name)

    def _count(self, name: str, change: int) -> None:
        """What a node reads has one reader more or less, unless no output depends on the node:
        then it runs when it is asked for, and nothing waits for it."""
        if name in self._live:
            for source in self.graph[name].all_input_nodes:
                self._readers[source.name] += change

    def _collect(self, name: str) -> None:
        if self._readers[name] <= 0 and not self._held[name]:
            self.values.pop(name, None)

    def _read_by(self, unit: frozenset[str]) -> list[str]:
        """What a unit reads of the values in front of it."""
        sources = {s.name: s for name in unit for s in self.graph[name].all_input_nodes}
        return [n for n, s in sources.items() if s.op == "call_function" and n not in unit]

    def _kept(self, name: str) -> list[str]:
        """What has to exist so that the value of `name` can be had at any time."""
        return self._reads[self._unit[name]] if name in self._unit else [name]

    def _reopen(self, name: str) -> None:
        """Let all of the unit that holds `name` run once more, but for values that still exist."""
        unit = self._unit.get(name, frozenset())
        if self._wanted[unit] <= 0:
            raise RuntimeError(f"value of {name} was freed before it was asked for")
        for freed in unit & self._done - self.values.keys():
            self._done.discard(freed)
            self._reopened.add(freed)
            self._count(freed, 1)

    def _close(self, unit: frozenset[str]) -> None:
        """Nobody waits for what has not run again."""
        for name in unit & self._reopened:
            self._finish(name)


class Walker(Schedule):
    """Demand-driven execution of one program over a list of batches.

    Parameters are read from `state` at the moment a node runs, so a caller may change a tensor
    before the first node that reads it.

    Args:
        programs: one exported program per batch (the same graph, perhaps other batch sizes).
        state: parameter and buffer name -> tensor.
        batches: per batch, the flat list of the program's user inputs.
        again: the nodes of every unit that may run more than once.
    """

    def __init__(
        self,
        programs: Sequence[ExportedProgram],
        state: State,
        batches: Sequence[Sequence[Value]],
        again: Iterable[frozenset[str]] = (),
    ) -> None:
        super().__init__(programs[0], again)
        self.state = state
        self.programs = programs
        self.nodes = [{n.name: n for n in p.graph.nodes} for p in programs]
        self._sources = [_sources(p, b) for p, b in zip(programs, batches, strict=True)]

    def make(self, name: str) -> list[Value]:
        read: dict[str, Tensor] = {}  # tensors of the state, the same for every batch
        return [self._evaluate(nodes[name], i, read) for i, nodes in enumerate(self.nodes)]

    def _evaluate(self, node: Node, index: int, read: dict[str, Tensor]) -> Value:
        if node.op != "call_function":
            return self._source(node, index, read)
        if node.target is torch.ops.aten.embedding.default and self._in_state(node.args[0]):
            table, positions = list[Any](node.args)[:2]
            return self.state.rows(self._key(table), self._given(positions, index, read))
        operands: Any = (node.args, node.kwargs)
        args, kwargs = torch.fx.map_arg(operands, lambda n: self._given(n, index, read))
        if node.target is operator.getitem:
            return args[0][args[1]]
        with torch.no_grad():
            return node.target(*args, **kwargs)  # type: ignore[operator]

    def _given(self, node: Any, index: int, read: dict[str, Tensor]) -> Value:
        """The value of an operand."""
        if node.op == "call_function":
            return self.values[node.name][index]
        return self._source(node, index, read)

    def _source(self, node: Node, index: int, read: dict[str, Tensor]) -> Value:
        if not self._in_state(node):
            return _fetch(node, self.programs[index], self._sources[index], self.state)
        key = self._key(node)
        if key not in read:
            read[key] = self.state[key]
        return read[key]

    def _in_state(self, node: Any) -> bool:
        table = self._sources[0]
        return node.op == "placeholder" and table[node.name][0] == "state"

    def _key(self, node: Any) -> str:
        return str(self._sources[0][node.name][1])


def sources_of(
    program: ExportedProgram, inputs: Sequence[Value], state: Mapping[str, Tensor]
) -> Callable[[Node], Value]:
    """The values of nodes that compute nothing: inputs, constants, tensors of the state."""
    table = _sources(program, inputs)
    return lambda node: _fetch(node, program, table, state)


def _fetch(
    node: Node,
    program: ExportedProgram,
    table: Mapping[str, tuple[str, Value]],
    state: Mapping[str, Tensor],
) -> Value:
    if node.op == "get_attr":
        return _attribute(program.graph_module, str(node.target))
    kind, key = table[node.name]
    return state[key] if kind == "state" else key


def _sources(program: ExportedProgram, inputs: Sequence[Value]) -> dict[str, tuple[str, Value]]:
    """Placeholder name -> where its value comes from: a tensor of the state, or a value itself."""
    signature = program.graph_signature
    table: dict[str, tuple[str, Value]] = {}
    for name, fqn in (
        *signature.inputs_to_parameters.items(),
        *signature.inputs_to_buffers.items(),
    ):
        table[name] = ("state", fqn)
    for name, fqn in signature.inputs_to_lifted_tensor_constants.items():
        table[name] = ("value", program.constants[fqn])
    taken = set(table)
    free = [n.name for n in program.graph.nodes if n.op == "placeholder" and n.name not in taken]
    if len(free) != len(inputs):
        raise RuntimeError(f"program takes {len(free)} inputs, got {len(inputs)}")
    table.update({name: ("value", v) for name, v in zip(free, inputs, strict=True)})
    return table


def _live(program: ExportedProgram) -> set[str]:
    """Names of the nodes that some output depends on."""
    live: set[str] = set()
    stack = [n for n in program.graph.nodes if n.op == "output"]
    while stack:
        node = stack.pop()
        if node.name not in live:
            live.add(node.name)
            stack.extend(node.all_input_nodes)
    return live


def _attribute(module: GraphModule, target: str) -> Value:
    value: Value = module
    for part in target.split("."):
        value = getattr(value, part)
    return value


def flat_inputs(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[Value]:
    """The user inputs in the order of a program's placeholders."""
    return pytree.tree_leaves((args, dict(kwargs)))
