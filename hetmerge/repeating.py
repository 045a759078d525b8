"""Units of a parent that stand at several positions of the merged network."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from hetmerge.branches import entry_of
from hetmerge.network import Network
from hetmerge.outline import Unit

MISSING = ("zero", "repeat")

Units = tuple[Network, Sequence[Unit]]


def stands_at(row: Sequence[int | None]) -> list[int]:
    """The position at which each of a parent's units stands, or stands first."""
    return [i for i, unit in enumerate(row) if unit is not None and unit not in row[:i]]


def repeated(row: Iterable[int | None], mine: Units, deepest: Units) -> list[int | None]:
    """Slots of a stage in which the unit before an empty position stands there once more.

    Args:
        row: per position one of the parent's units, or None, which stays where a unit cannot
            follow itself.
        mine: the parent's units of the stage.
        deepest: those of the parent that has a unit at every position.
    """
    found: list[int | None] = []
    running: int | None = None
    for i, unit in enumerate(row):
        if unit is not None:
            running = unit
        elif running is not None and _can_follow_itself(*mine, running, *deepest, i):
            unit = running
        found.append(unit)
    return found


def _can_follow_itself(
    network: Network, units: Sequence[Unit], k: int, other: Network, places: Sequence[Unit], i: int
) -> bool:
    """Unit k gives what it takes, in the same spaces: where input and output are ordered apart, a
    permuted parent would repeat another function. It has the tensors of the other's unit i."""
    nodes, unit, values = network.nodes, units[k], network.graph.values
    entry = entry_of(nodes.inside(unit.paths), nodes.nodes, unit)
    same = entry in values and values[entry] == values.get(unit.output)
    return same and _tensors(network, unit) == _tensors(other, places[i])


def _tensors(network: Network, unit: Unit) -> dict[str, int]:
    """Tensors by their name inside the unit -> dimensions."""
    return {
        f"{i}{name[len(path) :]}": len(exprs)
        for i, path in enumerate(unit.paths)
        for name, exprs in network.graph.tensors.items()
        if name.startswith(f"{path}.")
    }
