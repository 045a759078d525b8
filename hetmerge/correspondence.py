"""What each tensor, node and space of the merged network is in one parent."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from hetmerge.branches import Passage
from hetmerge.errors import AlignmentError
from hetmerge.network import Network
from hetmerge.outline import Stage
from hetmerge.repeating import stands_at
from hetmerge.sites import Counterparts, Site, SiteMap
from hetmerge.tracing.expr import Concat, Expr, Leaf, Product, size

Slots = list[list[int | None]]  # per stage, per position of the merged network: the parent's unit


class Correspondence:
    """The map from the merged network's skeleton to one parent.

    Attributes:
        slots: per stage and position, the parent's unit there, or None; one that is repeated stands
            at several positions in a row.
        again: the nodes of the parent's unit, once for every position at which it is repeated.
        tensors: skeleton tensor -> the parent's tensor (absent where the parent has no such unit).
        spaces: skeleton space -> the parent's space.
    """

    def __init__(
        self,
        skeleton: Network,
        parent: Network,
        stages: tuple[list[Stage], list[Stage]],
        slots: Slots,
        passages: dict[tuple[int, int], Passage],
    ):
        self.skeleton, self.parent, self.slots = skeleton, parent, slots
        self.stages, self.parent_stages = stages
        self._own, self._other = SiteMap(skeleton, stages[0]), SiteMap(parent, stages[1])
        self._counterparts = Counterparts(self._own, self._other)
        self._passages = passages
        self.again = tuple(
            frozenset(parent.nodes.inside(stages[1][s].units[unit].paths))
            for s, row in enumerate(slots)
            for before, unit in itertools.pairwise(row)
            if unit is not None and unit == before
        )
        self.tensors = self._match_tensors()
        self.spaces: dict[int, int] = {}
        self._pair_tensors()
        self._pair_missing()

    def running(self, stage: int, position: int) -> int:
        """The parent's last unit at or before this position of a stage."""
        return max(k for k in self.slots[stage][: position + 1] if k is not None)

    def missing(self) -> Iterator[tuple[int, int]]:
        """(stage, position) of every slot the parent has no unit for."""
        for s, row in enumerate(self.slots):
            yield from ((s, i) for i, k in enumerate(row) if k is None)

    def missing_slot(self, tensor: str) -> tuple[int, int] | None:
        """The slot that owns a tensor, if the parent has no unit there."""
        for s, i in self.missing():
            if any(tensor.startswith(f"{p}.") for p in self.stages[s].units[i].paths):
                return s, i
        return None

    def node(self, name: str) -> str | None:
        """The parent's node that plays the part of the skeleton's node `name`.

        In a slot the parent lacks, only the carried stream has a counterpart: the value that the
        parent brings past the slot unchanged. It stands for the stream in a repeated unit too; the
        other values there are those of the unit's one run.
        """
        site = self._own.sites.get(name)
        if site is None:
            return None
        if site.anchor is None:
            return self._other.nodes.get(site)
        stage, position = site.anchor
        if site.inside and position not in stands_at(self.slots[stage]):
            if name in self._passages[stage, position].carriers:
                return self.carried(stage, position)
            if self.slots[stage][position] is None:
                return None
        anchor = (stage, self.running(stage, position))
        if not site.inside:
            return self._other.nodes.get(Site(anchor, False, site.place))
        place = self._counterparts.place(site.anchor, anchor, site.place)
        return self._other.nodes.get(Site(anchor, True, place)) if place else None

    def out_of_pattern(self) -> Iterator[tuple[str, str]]:
        """The parent's units that stand where the merged network does something else, though it
        does what they do elsewhere in the stage: their paths, and those of the places."""
        for s, row in enumerate(self.slots):
            own, other = self._own.patterns(s), self._other.patterns(s)
            for i, k in enumerate(row):
                if k is not None and other[k] != own[i] and other[k] in own:
                    places, units = self.stages[s].units, self.parent_stages[s].units
                    yield units[k].paths[0], places[i].paths[0]

    def module(self, path: str) -> str | None:
        """The parent's module for a skeleton module path; None if it has none there."""
        for mine, theirs in self._renames():
            if path == mine or path.startswith(f"{mine}."):
                return None if theirs is None else theirs + path[len(mine) :]
        return path

    def carried(self, stage: int, position: int) -> str:
        """The parent's node whose value stands at the end of this slot."""
        return self.parent_stages[stage].units[self.running(stage, position)].output

    def _match_tensors(self) -> dict[str, str]:
        table: dict[str, str] = {}
        renames = list(self._renames())
        for name in self.skeleton.graph.tensors:
            owner = next(((a, b) for a, b in renames if name.startswith(f"{a}.")), None)
            other = name if owner is None else owner[1] and owner[1] + name[len(owner[0]) :]
            if other and other in self.parent.graph.tensors:
                table[name] = other
            elif owner is None or owner[1]:
                raise AlignmentError(
                    f"{self.parent.name}: no tensor for the merged network's {name!r}; "
                    "the parents must be of one family outside the stages whose depth differs"
                )
        left = sorted(set(self.parent.graph.tensors) - set(table.values()))
        if left:
            raise AlignmentError(
                f"{self.parent.name}: tensor {left[0]!r} has no place in the merged network"
                + (f" (and {len(left) - 1} more)" if len(left) > 1 else "")
                + "; the parents must be of one family outside the stages whose depth differs"
            )
        return table

    def _renames(self) -> Iterator[tuple[str, str | None]]:
        for s, row in enumerate(self.slots):
            for position, k in enumerate(row):
                paths = self.stages[s].units[position].paths
                theirs = self.parent_stages[s].units[k].paths if k is not None else None
                for i, path in enumerate(paths):
                    yield path, theirs[i] if theirs and i < len(theirs) else None

    def _pair_tensors(self) -> None:
        for name, other in self.tensors.items():
            pairs = zip(
                self.skeleton.graph.tensors[name], self.parent.graph.tensors[other], strict=True
            )
            for dim, (mine, theirs) in enumerate(pairs):
                self._pair(mine, theirs, f"tensor {name!r}, dimension {dim}")

    def _pair_missing(self) -> None:
        """A layer that the parent passes by identity leaves its features where they were."""
        for s, i in self.missing():
            carried = self.parent.graph.values[self.carried(s, i)]
            passage = self._passages[s, i]
            for node in passage.carriers:
                exprs = self.skeleton.graph.values[node]
                # Some families run part of a unit on [batch * length, features].
                same = len(exprs) == len(carried)
                pairs = zip(exprs, carried, strict=True) if same else [(exprs[-1], carried[-1])]
                for mine, theirs in pairs:
                    if isinstance(mine, Leaf) and mine.space >= 0:
                        self._pair(mine, theirs, f"output of {self.stages[s].units[i].paths[0]!r}")

    def _pair(self, mine: Expr, theirs: Expr, where: str) -> None:
        if isinstance(mine, Leaf) and isinstance(theirs, Leaf):
            self._pair_leaves(mine, theirs, where)
            return
        same = type(mine) is type(theirs) and not isinstance(mine, Leaf)
        if same:
            assert isinstance(mine, (Product, Concat))
            assert isinstance(theirs, (Product, Concat))
            if len(mine.parts) == len(theirs.parts):
                for a, b in zip(mine.parts, theirs.parts, strict=True):
                    self._pair(a, b, where)
                return
        raise AlignmentError(
            f"{self.parent.name}: {where} is built differently ({size(theirs)} features) than in "
            f"the merged network ({size(mine)} features); the parents must be of one family"
        )

    def _pair_leaves(self, mine: Leaf, theirs: Leaf, where: str) -> None:
        if mine.space < 0 or theirs.space < 0:
            return
        known = self.spaces.setdefault(mine.space, theirs.space)
        if known != theirs.space:
            names = [self.parent.graph.spaces[k].name for k in (known, theirs.space)]
            space = self.skeleton.graph.spaces[mine.space].name
            raise AlignmentError(
                f"{self.parent.name}: space {space!r} meets two spaces there ({names[0]!r} and "
                f"{names[1]!r}, at {where}); the parents' stages cannot be aligned"
            )
