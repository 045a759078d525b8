"""Where a partial merge ends: one value, in the merged network and in every parent."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch.fx import Node

from hetmerge.errors import PlanError
from hetmerge.network import Network
from hetmerge.outline import Unit
from hetmerge.partition import Partition
from hetmerge.pieces import ancestors
from hetmerge.repeating import stands_at
from hetmerge.setting import Setting
from hetmerge.tracing.expr import Leaf, leaves


@dataclass(frozen=True)
class Cut:
    """The last merged unit and what it leaves behind.

    Attributes:
        unit: of the merged network.
        own: per parent, its last unit at or before that one; its head goes on behind it.
        dim: dimension of the unit's output that holds the features.
        space: the skeleton's space of those features.
        trunk: nodes of the merged network that the output needs.
        spaces: spaces of the merged network that occur in the trunk.
    """

    unit: Unit
    own: tuple[Unit, ...]
    dim: int
    space: int
    trunk: frozenset[str]
    spaces: frozenset[int]

    def merged(self, partitions: Mapping[int, Partition]) -> dict[int, Partition]:
        """Those partitions that the trunk uses."""
        return {space: p for space, p in partitions.items() if space in self.spaces}


def find_cut(setting: Setting, stop_at: int | str | None) -> Cut | None:
    """The cut behind the unit that `stop_at` names; None where everything is merged.

    Args:
        stop_at: a number of merged units over all stages, or the module path of a unit in the
            deepest parent.

    Raises:
        PlanError: there is no such unit, or more than its output is read behind it.
    """
    if stop_at is None:
        return None
    stage, position = _place(setting, stop_at)
    unit = setting.stages[stage].units[position]
    own = tuple(
        stages[stage].units[link.running(stage, position)]
        for stages, link in zip(setting.alignment.stages, setting.links, strict=True)
    )
    for network, theirs in ((setting.skeleton, unit), *zip(setting.parents, own, strict=True)):
        _check_crossing(network, theirs)
    graph = setting.skeleton.graph
    dim, space = _stream(setting, unit)
    nodes = {n.name: n for n in graph.program.graph.nodes}
    trunk = frozenset(n.name for n in ancestors([nodes[unit.output]], None))
    spaces = frozenset(
        leaf.space for name in trunk for expr in graph.values.get(name, ()) for leaf in leaves(expr)
    )
    return Cut(unit, own, dim, space, trunk, spaces)


def _place(setting: Setting, stop_at: int | str) -> tuple[int, int]:
    order = setting.skeleton.nodes.order
    places = [(s, i) for s, stage in enumerate(setting.stages) for i in range(len(stage.units))]
    places.sort(key=lambda at: order[setting.stages[at[0]].units[at[1]].output])
    if not places:
        raise PlanError("stop_at: these models have no units to stop at; allowed: None")
    if isinstance(stop_at, int):
        if stop_at > len(places):
            raise PlanError(f"stop_at: got {stop_at}; allowed: 1 to {len(places)} merged units")
        return places[stop_at - 1]
    base = setting.alignment.base
    slots, stages = setting.alignment.slots[base], setting.alignment.stages[base]
    known = {
        path: (s, i)
        for s, row in enumerate(slots)
        for i, unit in zip(stands_at(row), stages[s].units, strict=True)
        for path in unit.paths
    }
    if stop_at not in known:
        raise PlanError(
            f"stop_at: got {stop_at!r}; allowed: a unit of models[{base}], the deepest: "
            + ", ".join(known)
        )
    return known[stop_at]


def _stream(setting: Setting, unit: Unit) -> tuple[int, int]:
    """(dimension, space) of the features of the unit's output."""
    graph = setting.skeleton.graph
    exprs = graph.values[unit.output]
    found = [
        (d, expr)
        for d, expr in enumerate(exprs)
        if any(graph.spaces[leaf.space].free for leaf in leaves(expr) if leaf.space >= 0)
    ]
    if len(found) == 1 and isinstance(found[0][1], Leaf):
        return found[0][0], found[0][1].space
    raise PlanError(
        f"stop_at: the output of {unit.paths[-1]!r} has {len(found)} axes of features that can be "
        "merged; allowed: one, made of one space; stop at another unit"
    )


def _check_crossing(network: Network, unit: Unit) -> None:
    """Behind the unit nothing may read what the weights before it computed, but its output."""
    program, graph = network.graph.program, network.graph
    nodes = {n.name: n for n in program.graph.nodes}
    cut = nodes[unit.output]
    needed = ancestors([nodes[name] for name in graph.outputs], cut)
    if cut not in needed:
        raise PlanError(
            f"stop_at: {network.name} does not use the output of {unit.paths[-1]!r}; "
            "allowed: a unit on the way to the outputs"
        )
    behind = _descendants(cut)
    others = sorted(
        {
            network.nodes.stacks[node.name][-1:] or (node.name,)
            for node in _computed(network, needed - behind)
            if node.name in graph.outputs
            or any(user in behind and user in needed for user in node.users)
        }
    )
    if others:
        places = ", ".join(repr(path) for (path,) in others)
        raise PlanError(
            f"stop_at: behind {unit.paths[-1]!r}, {network.name} also reads what {places} "
            "computed; allowed: a unit whose output is all that crosses"
        )


def _descendants(node: Node) -> set[Node]:
    seen: set[Node] = set()
    stack = [node]
    while stack:
        found = stack.pop()
        if found not in seen:
            seen.add(found)
            stack.extend(found.users)
    return seen


def _computed(network: Network, nodes: set[Node]) -> list[Node]:
    """Those that depend on inputs and on parameters: masks and positions do not, and are cheap."""
    signature = network.graph.program.graph_signature
    weights = set(signature.inputs_to_parameters)
    given = set(weights) | set(signature.inputs_to_buffers)
    given |= set(signature.inputs_to_lifted_tensor_constants)
    depends: dict[Node, tuple[bool, bool]] = {}
    for node in network.graph.program.graph.nodes:
        if node.op == "placeholder":
            depends[node] = (node.name not in given, node.name in weights)
            continue
        sources: Sequence[tuple[bool, bool]] = [depends[n] for n in node.all_input_nodes]
        depends[node] = (any(a for a, _ in sources), any(b for _, b in sources))
    return [node for node in nodes if node.op == "call_function" and all(depends[node])]
