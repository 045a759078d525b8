"""Stages and blocks of a network, found from its modules and the shapes they produce.

A *unit* is a composite child of a container (a residual block) or, in a flat sequence, one layer
with weights and the shape-keeping modules behind it. A *stage* is a run of consecutive units of one
kind whose outputs have the same shape: such units are interchangeable, so depth may differ there.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from torch import nn
from torch.fx import Node

from hetmerge.errors import AlignmentError

_CONTAINERS = (nn.Sequential, nn.ModuleList)


@dataclass(frozen=True)
class Unit:
    """Module paths that form one block, and the graph node of its output."""

    paths: tuple[str, ...]
    kind: str
    output: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Stage:
    """A run of interchangeable units in one container."""

    name: str
    container: str
    units: tuple[Unit, ...]


@dataclass
class ModuleNodes:
    """Which graph nodes ran inside which module."""

    order: dict[str, int]
    stacks: dict[str, tuple[str, ...]]
    nodes: dict[str, Node]
    by_module: dict[str, list[str]] = field(default_factory=dict)

    @classmethod
    def of(cls, nodes: Sequence[Node]) -> ModuleNodes:
        calls = [n for n in nodes if n.op == "call_function"]
        stacks = {n.name: _stack(n) for n in calls}
        table = cls({n.name: i for i, n in enumerate(calls)}, stacks, {n.name: n for n in calls})
        for name, stack in stacks.items():
            for path in stack:
                table.by_module.setdefault(path, []).append(name)
        return table

    def inside(self, paths: Sequence[str]) -> list[str]:
        """Names of the nodes that ran inside these modules, in order."""
        names = {n for path in paths for n in self.by_module.get(path, ())}
        return sorted(names, key=self.order.__getitem__)

    def output(self, paths: Sequence[str]) -> Node | None:
        """Last node inside these modules that something outside reads."""
        inside = set(self.inside(paths))
        for name in sorted(inside, key=self.order.__getitem__, reverse=True):
            node = self.nodes[name]
            shape = getattr(node.meta.get("val"), "shape", None)
            if shape is not None and any(u.name not in inside for u in node.users):
                return node
        return None

    def in_turn(self, stages: Sequence[Stage]) -> list[Unit]:
        """All units in the order in which they end: those of two lists may run in turns."""
        units = [unit for stage in stages for unit in stage.units]
        return sorted(units, key=lambda unit: self.order[unit.output])


def _stack(node: Node) -> tuple[str, ...]:
    stack = node.meta.get("nn_module_stack") or {}
    return tuple(dict.fromkeys(str(path).split("@")[0] for path, _ in stack.values()))


def find_containers(model: nn.Module, table: ModuleNodes) -> list[str]:
    """Outermost containers that hold at least one stage of two or more units."""
    return [path for path, repeated in _candidates(model, "", table) if repeated]


def lone_containers(model: nn.Module, table: ModuleNodes) -> list[str]:
    """Containers of composite units that never repeat: stages only where another parent's do."""
    return [path for path, _ in _candidates(model, "", table)]


def containers_below(model: nn.Module, path: str, table: ModuleNodes) -> list[str]:
    """Those with stages of two or more units inside of the units of a container."""
    return [
        found
        for name, child in model.get_submodule(path).named_children()
        for found, repeated in _candidates(child, f"{path}.{name}" if path else name, table)
        if repeated
    ]


def _candidates(module: nn.Module, path: str, table: ModuleNodes) -> Iterator[tuple[str, bool]]:
    runs = stages_in(module, path, table) if isinstance(module, _CONTAINERS) else []
    if any(len(stage.units) > 1 for stage in runs):
        yield path, True
        return
    deeper = [
        found
        for name, child in module.named_children()
        for found in _candidates(child, f"{path}.{name}" if path else name, table)
    ]
    if deeper:
        yield from deeper
    elif runs:
        yield path, False


def stages_in(container: nn.Module, path: str, table: ModuleNodes) -> list[Stage]:
    """The stages of one container, in order."""
    runs: list[list[Unit]] = []
    previous_end = -1
    for unit in _units(container, path, table):
        start = table.order[table.inside(unit.paths)[0]]
        if start < previous_end:
            return []
        previous_end = table.order[unit.output]
        last = runs[-1][-1] if runs else None
        if last and (last.kind, last.shape) == (unit.kind, unit.shape):
            runs[-1].append(unit)
        else:
            runs.append([unit])
    label = path or "model"
    names = [label if len(runs) == 1 else f"{label}[{i}]" for i in range(len(runs))]
    return [Stage(n, path, tuple(run)) for n, run in zip(names, runs, strict=True)]


def _units(container: nn.Module, path: str, table: ModuleNodes) -> Iterator[Unit]:
    pending: list[str] = []
    kind = ""
    for name, child in container.named_children():
        here = f"{path}.{name}" if path else name
        composite, weighted = bool(list(child.children())), _is_layer(child)
        if composite or weighted or (pending and not _keeps_shape(here, pending, table)):
            yield from _unit(pending, kind, table)
            pending, kind = [], ""
        if composite or weighted or pending:
            pending.append(here)
            kind = kind or type(child).__name__
    yield from _unit(pending, kind, table)


def _unit(paths: list[str], kind: str, table: ModuleNodes) -> Iterator[Unit]:
    node = table.output(paths) if paths else None
    if node is not None:
        yield Unit(tuple(paths), kind, node.name, tuple(node.meta["val"].shape))


def _is_layer(module: nn.Module) -> bool:
    return any(p.dim() > 1 for p in module.parameters(recurse=False))


def _keeps_shape(path: str, pending: list[str], table: ModuleNodes) -> bool:
    node, before = table.output([path]), table.output(pending)
    if node is None or before is None:
        return True
    return bool(node.meta["val"].shape == before.meta["val"].shape)


def custom_stages(blocks: Sequence[Sequence[str]], table: ModuleNodes) -> list[Stage]:
    """Stages as the user names them: per stage the module paths of its blocks."""
    stages = []
    for index, paths in enumerate(blocks):
        units = []
        for path in paths:
            node = table.output([path])
            if node is None:
                raise AlignmentError(
                    f"blocks: stage {index} names module {path!r}, which runs nothing in this "
                    "model; give paths of modules that the forward pass calls"
                )
            units.append(Unit((path,), "custom", node.name, tuple(node.meta["val"].shape)))
        stages.append(Stage(f"stage{index}", "", tuple(units)))
    return stages
