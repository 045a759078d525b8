"""Which node of one network's graph plays the part of which node in another's.

A node inside a unit is known by its place in that unit; a node outside every unit by the unit that
ran last before it. Both stay meaningful when the other network has fewer units in a stage. Units of
one kind may run other operators, such as attention with and without a mask: there the longest runs
that both have are one another's counterparts.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from difflib import SequenceMatcher
from functools import cached_property, lru_cache
from hashlib import blake2b

from hetmerge.branches import entry_of
from hetmerge.layers import op_name, tensor_names
from hetmerge.network import Network
from hetmerge.outline import Stage, Unit

Anchor = tuple[int, int] | None  # (stage, unit), None before the first unit
Place = tuple[str, str, int]  # (module path, operator, how many such before it there)
Pattern = tuple[tuple[tuple[str, str], ...], frozenset[str]]


@dataclass(frozen=True)
class Site:
    """Where a node stands: in (`inside`) or after the unit `anchor`, at `place`."""

    anchor: Anchor
    inside: bool
    place: Place


class SiteMap:
    """Nodes of one network by site, given its stages."""

    def __init__(self, network: Network, stages: list[Stage]):
        self.stages = stages
        self.sites: dict[str, Site] = {}
        self.nodes: dict[Site, str] = {}
        self.inside: dict[tuple[int, int], list[Place]] = {}
        self._network = network
        owner: dict[str, tuple[tuple[int, int], int]] = {}
        for s, stage in enumerate(stages):
            for k, unit in enumerate(stage.units):
                for child, path in enumerate(unit.paths):
                    owner.update(dict.fromkeys(network.nodes.inside([path]), ((s, k), child)))
        self._fill(network, owner)

    def _fill(self, network: Network, owner: dict[str, tuple[tuple[int, int], int]]) -> None:
        counts: Counter[tuple[Anchor, bool, str, str]] = Counter()
        anchor: Anchor = None
        for name in network.nodes.order:
            inside = name in owner
            stack = network.nodes.stacks[name]
            path = stack[-1] if stack else ""
            if inside:
                anchor, child = owner[name]
                assert anchor is not None
                prefix = self.stages[anchor[0]].units[anchor[1]].paths[child]
                path = f"{child}:{path[len(prefix) :]}"
            else:
                path = self._general(path)
            op = op_name(network.nodes.nodes[name])
            key = (anchor, inside, path, op)
            site = Site(anchor, inside, (path, op, counts[key]))
            counts[key] += 1
            self.sites[name], self.nodes[site] = site, name
            if inside:
                assert anchor is not None
                self.inside.setdefault(anchor, []).append(site.place)

    def patterns(self, stage: int) -> list[Pattern]:
        """What the code of every unit of a stage does: its operators, and which values made in
        front of all units it reads, such as one of two masks."""
        return [self._pattern((stage, k), unit) for k, unit in enumerate(self.stages[stage].units)]

    def _pattern(self, anchor: tuple[int, int], unit: Unit) -> Pattern:
        nodes = self._network.nodes.nodes
        inside = self._network.nodes.inside(unit.paths)
        read = {a.name for n in inside for a in nodes[n].all_input_nodes}
        read -= {entry_of(inside, nodes, unit)}
        early = [n for n in read if n in self.sites and self.sites[n].anchor is None]
        operators = tuple(place[:2] for place in self.inside.get(anchor, ()))
        return operators, frozenset(self._made[name] for name in early)

    @cached_property
    def _made(self) -> dict[str, str]:
        """What every value is made of and how, whatever the sizes: a digest."""
        found: dict[str, str] = {}
        tensors = tensor_names(self._network.graph.program)
        for node in self._network.graph.program.graph.nodes:
            if node.op == "call_function":
                parts = [op_name(node), *(found[a.name] for a in node.all_input_nodes)]
            else:
                parts = [node.op, tensors.get(node.name, node.name)]
            found[node.name] = blake2b(" ".join(parts).encode(), digest_size=8).hexdigest()
        return found

    def _general(self, path: str) -> str:
        """Children of a stage's container are numbered; the number says nothing elsewhere."""
        for stage in self.stages:
            prefix = f"{stage.container}." if stage.container else ""
            rest = path.removeprefix(prefix)
            if path.startswith(prefix) and rest.split(".")[0].isdigit():
                return f"{stage.container}.*"
        return path


class Counterparts:
    """Where the nodes of a unit stand in a unit of another network."""

    def __init__(self, own: SiteMap, other: SiteMap):
        self._own, self._other = own, other
        self._known: dict[tuple[tuple[int, int], tuple[int, int]], dict[Place, Place]] = {}

    def place(self, unit: tuple[int, int], theirs: tuple[int, int], place: Place) -> Place | None:
        """The place in the other's unit `theirs` of what stands at `place` in `unit`."""
        if (unit, theirs) not in self._known:
            mine, others = self._own.inside[unit], self._other.inside[theirs]
            self._known[unit, theirs] = dict(_common(tuple(mine), tuple(others)))
        return self._known[unit, theirs].get(place)


@lru_cache(maxsize=64)
def _common(mine: tuple[Place, ...], theirs: tuple[Place, ...]) -> list[tuple[Place, Place]]:
    if mine == theirs:
        return list(zip(mine, theirs, strict=True))
    own, other = ([place[:2] for place in places] for places in (mine, theirs))
    blocks = SequenceMatcher(None, own, other, autojunk=False).get_matching_blocks()
    return [(mine[a + i], theirs[b + i]) for a, b, size in blocks for i in range(size)]
