"""Which node of one network's graph plays the part of which node in another's.

A node inside a unit is known by its place in that unit; a node outside every unit by the unit that
ran last before it. Both stay meaningful when the other network has fewer units in a stage.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from hetmerge.layers import op_name
from hetmerge.network import Network
from hetmerge.outline import Stage

Anchor = tuple[int, int] | None  # (stage, unit), None before the first unit
Place = tuple[str, str, int]  # (module path, operator, how many such before it there)


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

    def _general(self, path: str) -> str:
        """Children of a stage's container are numbered; the number says nothing elsewhere."""
        for stage in self.stages:
            prefix = f"{stage.container}." if stage.container else ""
            rest = path.removeprefix(prefix)
            if path.startswith(prefix) and rest.split(".")[0].isdigit():
                return f"{stage.container}.*"
        return path
