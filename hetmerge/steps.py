"""The order of refit: which values each step reads, and how long they are kept."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from hetmerge.cutting import Cut
from hetmerge.execution import Schedule
from hetmerge.layers import Group, find_groups
from hetmerge.network import Network
from hetmerge.setting import Setting


@dataclass(frozen=True)
class Step:
    """One layer group and the nodes whose values it needs.

    Attributes:
        group: the layers.
        before: nodes of the merged network in front of the layers.
        after: nodes behind the corrected layers, for their norms.
        parents: per parent, the nodes that hold the targets.
    """

    group: Group
    before: list[str]
    after: list[str]
    parents: list[list[str]]


def steps_of(
    merged: Network, setting: Setting, *, refit: bool, cut: Cut | None = None
) -> list[Step]:
    """Every group in the order in which it can be corrected.

    Args:
        merged: the merged network, or one with the same program.
        refit: the layers are solved (else rescaled, from statistics of their outputs).
        cut: of a partial merge; only the groups of its trunk.
    """
    found = []
    for group in find_groups(merged.graph.program, merged.layers):
        if cut is not None and group.layers[0].node not in cut.trunk:
            continue
        tails = [layer.tail for layer in group.layers]
        before = [layer.source for layer in group.layers]
        if not refit:
            before += tails  # computed again, from the same sources, once they are rescaled
        elif group.skip:
            before.append(group.skip)
        after = [layer.node for layer in group.layers if layer.norm]
        wanted = [group.target] if refit else tails
        theirs = [
            [n for name in wanted if (n := link.node(name)) is not None] for link in setting.links
        ]
        found.append(Step(group, before, after, theirs))
    return found


def visit(
    steps: Iterable[Step], everything: Sequence[Step], merged: Schedule, parents: Sequence[Schedule]
) -> Iterator[Step]:
    """Yield the steps; every value is kept until the last step that needs it is over.

    Args:
        steps: `everything`, perhaps with progress.
    """
    for step in everything:
        merged.hold(step.before + step.after)
        for schedule, names in zip(parents, step.parents, strict=True):
            schedule.hold(names)
    for step in steps:
        yield step
        merged.release(step.before + step.after)
        for schedule, names in zip(parents, step.parents, strict=True):
            schedule.release(names)
