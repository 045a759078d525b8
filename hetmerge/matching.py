"""Width: a partition for every space, from the correlations of what its features do."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from hetmerge.agreement import Agreement, agreement
from hetmerge.calibration import Statistics
from hetmerge.fixed_order import FixedOrder
from hetmerge.gathering import Gathered
from hetmerge.halfway import Halfway
from hetmerge.heads import keep_best
from hetmerge.labelling import Labelling
from hetmerge.labels import positional_partition, similarity_of
from hetmerge.loudness import Squares, loudness
from hetmerge.maps import pack, unpack
from hetmerge.nested import apart, match_inside, nested, outer_first, outer_similarity
from hetmerge.ops.moments import Moments
from hetmerge.ops.selection import Gram
from hetmerge.options import Options
from hetmerge.partition import Partition, union
from hetmerge.places import Places
from hetmerge.principal import Directions, about_zero, directions
from hetmerge.rotations import Rotation
from hetmerge.selecting import importance_of, selection
from hetmerge.setting import Setting
from hetmerge.streams import heads_inside, unit_sizes
from hetmerge.tracing.expr import Leaf, Product
from hetmerge.tracing.spaces import Space
from hetmerge.uniform import even_out
from hetmerge.vocabulary import vocabulary_spaces
from hetmerge.widths import Width, check_names, target_width


@dataclass(frozen=True)
class Matching:
    """Partitions of every space of the skeleton, how well they agree, remarks for the report."""

    partitions: dict[int, Partition]
    agreements: dict[int, Agreement]
    notes: tuple[str, ...]


def match_spaces(statistics: Statistics, options: Options) -> Matching:
    """Compute one partition per space.

    A parent of weight 0 has no say: the others are matched without it, and its features join the
    clusters they resemble most, so that a merge with weight 1 for one parent returns that parent.

    Raises:
        InputError: an option does not fit these parents.
        PlanError: a space that must keep its order has different sizes in the parents.
    """
    return Matcher(statistics, options).match(options.width)


def rotation_of(setting: Setting, space: int) -> Rotation | None:
    """How layers read a space without a preferred basis that several parents have."""
    links = [setting.links[m] for m in setting.members(space)]
    if len(links) < 2 or any(link.spaces[space] not in link.parent.rotations for link in links):
        return None
    return setting.skeleton.rotations.get(space)


class Matcher:
    """Partitions space by space, outer spaces before those nested in them."""

    def __init__(self, statistics: Statistics, options: Options):
        self.statistics, self.setting, self.options = statistics, statistics.setting, options
        self._spaces = self.setting.skeleton.graph.spaces
        self.weights = options.shares(len(self.setting.parents))
        self.streams = not self.setting.skeleton.in_memory
        self._type = torch.promote_types(self.setting.skeleton.state.dtype, torch.float32)
        self._places = Places(self.setting, statistics.calls, options)
        self._fixed = FixedOrder(self.setting, statistics.calls[0])
        self.partitions: dict[int, Partition] = {}
        self.agreements: dict[int, Agreement] = {}
        self.notes: list[str] = []
        self._labelling = Labelling(options, self.weights, self.notes, overwrite=self.streams)
        self._directed: dict[int, Directions] = {}
        self._halfway: Halfway | None = None

    def match(self, width: Width) -> Matching:
        """Match every space, anew if it was done before at other widths."""
        check_names(width, self._spaces)
        self.notes.clear()
        self.agreements.clear()
        self._match_spaces(self._spaces, width)
        return self._even()

    def match_stream(
        self, parts: Iterable[Gathered], width: Width, halfway: Halfway | None = None
    ) -> Matching:
        """Match spaces as their moments come, and forget the moments."""
        check_names(width, self._spaces)
        self._halfway = halfway
        if halfway:
            if known := halfway.take("matching"):
                self._restore(known, halfway)
            halfway.keep("matching", self._state)
        for part in parts:
            seen = {*part.moments, *(k for nest in part.nested for k in nest)}
            self.statistics.take(part)
            self._match_spaces([self._spaces[k] for k in seen], width)
            self.statistics.forget()
        self._match_spaces([s for s in self._spaces if s.index not in self.partitions], width)
        return self._even()

    def _state(self) -> dict[str, Any]:
        """What has been decided; what only parts of one piece share is not kept."""
        return {
            "partitions": pack(self.partitions),
            "agreements": {k: found.to_dict() for k, found in self.agreements.items()},
            "squares": {k: found.state_dict() for k, found in self.statistics.squares.items()},
            "notes": self.notes,
        }

    def _restore(self, state: dict[str, Any], halfway: Halfway) -> None:
        self.partitions = unpack(state["partitions"], halfway.stored)
        self.agreements = {k: Agreement(**known) for k, known in state["agreements"].items()}
        known = {k: Squares.from_state_dict(found) for k, found in state["squares"].items()}
        self.statistics.squares.update(known)
        self.notes[:] = state["notes"]

    def _match_spaces(self, spaces: Sequence[Space], width: Width) -> None:
        order = {space.index: i for i, space in enumerate(outer_first(self._spaces))}
        for space in sorted(spaces, key=lambda space: order[space.index]):
            if sizes := self.sizes(space):
                found = self._partition(space, sizes, width).read_in(self._type)
                if self._halfway and found.readoff:
                    stored = self._halfway.store(space.index, found.readoff)
                    found = replace(found, readoff=stored)
                self.partitions[space.index] = found
                if self.streams:  # each space is matched once
                    self._directed.clear()

    def _even(self) -> Matching:
        ordered = {
            s.index: self.partitions[s.index]
            for s in outer_first(self._spaces)
            if s.index in self.partitions
        }
        even = even_out(self.setting, ordered, self.weights)
        return Matching(even, dict(self.agreements), tuple(self.notes))

    def sizes(self, space: Space) -> dict[int, int]:
        """Parent -> features of this space, for the parents that have it."""
        return {m: self.setting.width(m, space.index) for m in self.setting.members(space.index)}

    def places(self, space: Space) -> list[Sequence[Tensor | Gram]]:
        """Per parent that has the space: how errors count, at each place that reads it."""
        return [self._places.of(m, space.index) for m in self.sizes(space)]

    @cached_property
    def _between(self) -> set[int]:
        """Heads inside groups: seen only across groups that have not met yet."""
        graph = self.setting.skeleton.graph
        return {
            part.space
            for exprs in graph.tensors.values()
            for expr in exprs
            if isinstance(expr, Product)
            for part in expr.parts[1:-1]
            if isinstance(part, Leaf) and graph.spaces[part.space].structure
        }

    @cached_property
    def _vocabularies(self) -> set[int]:
        return vocabulary_spaces(self.setting.skeleton)

    def movable(self, space: Space, sizes: dict[int, int]) -> bool:
        """Its features may stand in any order in all parents that have it."""
        return space.free and all(self._theirs(m, space.index).free for m in sizes)

    def _partition(self, space: Space, sizes: dict[int, int], width: Width) -> Partition:
        options = self.options
        if self.statistics.vocabulary and space.index in self._vocabularies:
            return self.statistics.vocabulary.partition(sizes)
        if not self.movable(space, sizes):
            found, notes = self._fixed.partition(space.index, sizes, options)
            self.notes += [note for note in notes if note not in self.notes]
            return found
        widest = max(sizes.values())
        target = target_width(width, space, list(sizes.values()))
        outer = [self.partitions[k] for k in space.structure if k in self.partitions]
        if len(sizes) > 1 and any(p.alone and len(p.labels) > 1 for p in outer):
            # Kept apart by the outer axis already (heads, groups): the inner order can be shared.
            return positional_partition(space.name, sizes, widest)
        moments = self.statistics.moments.get(space.name)
        if len(sizes) > 1 and moments is not None and (rotation := self._rotation(space)):
            return self._directions(space, moments, rotation, sizes).partition(target)
        flat = not nested(self._spaces, space.index)
        alone = len(sizes) == 1 and not (flat and self._seen(space))
        if alone or target == sum(sizes.values()):
            return union(sizes)
        if options.match == "identity":
            return positional_partition(space.name, sizes, target)
        if options.match == "pca" and space.index in self.statistics.axes:
            partition = self._whole(space, sizes, target)
            if partition is not None:
                return partition
        if nest := self._nest(space):
            return self._inside(space, nest, sizes, target)
        if heads := self._heads(space, sizes, max(target, widest)):
            return heads
        nests = [nest for nest in self.statistics.nested if nest[0] == space.index]
        if nests:
            return self._outer(space, nests, sizes, max(target, widest))
        if moments is None or space.index in self._between:
            return self._unseen(space, sizes, target)
        if options.match in ("select", "pca") and not nested(self._spaces, space.index):
            second = self._second(moments)
            if self.streams:
                self.statistics.moments.pop(space.name, None)
                del moments
            return self._select(space, second, sizes, target)
        similarity = similarity_of(moments)
        shown = similarity
        if self.streams:  # matching takes the memory of what it reads
            self.statistics.moments.pop(space.name, None)
            del moments
            shown = similarity.float()
        partition = self._heard(space, options.match, similarity, sizes, target)
        del similarity  # what is shown stays
        chance = self.statistics.chance.get(space.name)
        if len(sizes) > 1:
            self.agreements[space.index] = agreement(shown, sizes, partition.labels, chance)
        return partition

    def _seen(self, space: Space) -> bool:
        return space.name in self.statistics.moments

    def _unseen(self, space: Space, sizes: dict[int, int], target: int) -> Partition:
        self.notes.append(
            f"space {space.name!r} cannot be compared in activations: matched by position"
        )
        return positional_partition(space.name, sizes, target)

    def _select(
        self, space: Space, second: Tensor, sizes: dict[int, int], target: int
    ) -> Partition:
        importances = dict(zip(sizes, self.places(space), strict=True))
        if not any(importances.values()):
            self.notes.append(f"space {space.name!r} is read by no layer: matched by position")
            return positional_partition(space.name, sizes, target)
        return selection(second, sizes, importances, self.weights, target)

    def _second(self, moments: Moments) -> Tensor:
        """Second moments that features are read off by.

        About zero where there may be no bias to carry a mean, as in the networks of "pca".
        """
        return about_zero(moments) if self.options.match == "pca" else moments.covariance()

    def _rotation(self, space: Space) -> Rotation | None:
        """How layers read the space, where the method and all parents allow an orthogonal map."""
        return rotation_of(self.setting, space.index) if self.options.match == "pca" else None

    def _directions(
        self, space: Space, moments: Moments, rotation: Rotation, sizes: dict[int, int]
    ) -> Directions:
        if space.index not in self._directed:
            squares = self.statistics.squares
            loud = loudness(squares[node] for node in rotation.norms if node in squares)
            places = dict(zip(sizes, self.places(space), strict=True))
            self._directed[space.index] = directions(
                about_zero(moments), sizes, places, self.weights, loud
            )
        return self._directed[space.index]

    def _whole(self, space: Space, sizes: dict[int, int], target: int) -> Partition | None:
        """Keep the heads or groups from which all are best read off; no two are averaged.

        None where they differ in size between the parents.
        """
        if len(unit_sizes(self.setting, space.index)) > 1:
            return None
        second, importance = self._axis(space, sizes)
        return keep_best(second, importance, sizes, self.weights, target)

    def _axis(self, space: Space, sizes: dict[int, int]) -> tuple[Tensor, Tensor]:
        """Second moments of all units of an outer space, and how errors in them count."""
        moments = self.statistics.axes[space.index]
        features = dict(zip(sizes, moments.sizes, strict=True))
        second, places = about_zero(moments), self._places.of_axis(space.index, sizes)
        return second, importance_of(second, features, places, self.weights)

    def _theirs(self, parent: int, space: int) -> Space:
        link = self.setting.links[parent]
        return link.parent.graph.spaces[link.spaces[space]]

    def _outer(
        self, space: Space, nests: list[tuple[int, int]], sizes: dict[int, int], target: int
    ) -> Partition:
        """Groups and heads meet one to one, as their features match best."""
        counts = list(sizes.values())
        alike = [
            outer_similarity(
                similarity_of(self.statistics.nested[nest]),
                counts,
                [self.setting.width(m, nest[1]) for m in sizes],
            )
            for nest in nests
        ]
        return self._heard(space, "permute", torch.stack(alike).mean(0), sizes, target)

    def _inside(
        self, space: Space, nest: tuple[int, int], sizes: dict[int, int], target: int
    ) -> Partition:
        """The features inside groups and heads, anew in each that was matched."""
        together = similarity_of(self.statistics.nested[nest])
        outer = (nest[0], self.partitions[nest[0]])
        partition, found = match_inside(
            self._labelling, space.name, together, sizes, outer, target, self.options.match
        )
        whole = {m: len(labels) for m, labels in found.items()}
        chance = self.statistics.chance.get(space.name)
        self.agreements[space.index] = agreement(together, whole, found, chance)
        return partition

    @cached_property
    def _inner_heads(self) -> dict[int, int]:
        return heads_inside(self.setting)

    def _heads(self, space: Space, sizes: dict[int, int], target: int) -> Partition | None:
        """Heads inside groups meet one to one, anew in each cluster of groups, as their features
        match best; None for other spaces, and where heads cannot be seen."""
        group = self._inner_heads.get(space.index, -1)
        moments, groups = self.statistics.axes.get(group), self.partitions.get(group)
        if moments is None or groups is None or not apart(self.setting, group, space.index):
            return None
        counts = [self.setting.width(m, group) * heads for m, heads in sizes.items()]
        inner = [total // count for total, count in zip(moments.sizes, counts, strict=True)]
        alike = outer_similarity(similarity_of(moments), counts, inner)
        outer = (group, groups)
        return match_inside(self._labelling, space.name, alike, sizes, outer, target, "permute")[0]

    def _nest(self, space: Space) -> tuple[int, int] | None:
        """(outer, inner) if the order of a space may differ in the units of an outer one."""
        return next(
            (
                nest
                for nest in self.statistics.nested
                if nest[1] == space.index
                and nest[0] in self.partitions
                and apart(self.setting, *nest)
            ),
            None,
        )

    def _heard(
        self, space: Space, match: str, similarity: Tensor, sizes: dict[int, int], target: int
    ) -> Partition:
        blocks = list(sizes.items())
        width, labels = self._labelling.labels(space.name, match, similarity, blocks, target)
        return Partition(width, dict(zip(sizes, labels, strict=True)))
