"""What is lost of a space at every width that a budget may choose."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from functools import cached_property

import torch
from torch import Tensor

from hetmerge.features import View, views_of
from hetmerge.heads import lost_without
from hetmerge.huggingface import is_pretrained
from hetmerge.labels import positional_partition, similarity_of
from hetmerge.losses import shares_lost
from hetmerge.matching import Matcher
from hetmerge.nested import nested
from hetmerge.partition import Partition, union
from hetmerge.selecting import importance_of, ranked
from hetmerge.tracing.spaces import Space

MOST = 1 - 1e-6  # that may be lost of a space: the logarithm of what is kept stays finite
# Powers of the share left out by which a guess of losses goes, near those of small language models.
FEATURES, HEADS = 6, 2


class Curves(Matcher):
    """A matcher that also tells what its matching loses.

    Of "select", "pca" and parents on disk, one order in which features, directions or units are
    kept tells it for all widths; where features meet, every width is a partition of its own. Whole
    heads or groups stand for those that are averaged as well.
    """

    def losses(self, space: Space, widths: Sequence[int]) -> Tensor:
        """[widths] float64, what is lost of one space.

        What one layer still gets of its input passes through the next, so the shares that are kept
        multiply and minus their logarithms add.
        """
        sizes, whole = self.sizes(space), nested(self._spaces, space.index)
        known = self.statistics
        if not (space.index in known.axes if whole else space.name in known.moments):
            return self.guess(space, widths)
        total = sum(sizes.values())
        if whole:
            lost = _at(self._lost_of_units(space, sizes), widths)
        elif self.streams or self.options.match in ("select", "pca"):
            most = max((n for n in widths if n < total), default=1)
            lost = _at(self._lost_in_order(space, sizes, most), widths)
        else:
            lost = self._lost_where_they_meet(space, sizes, widths)
        lost = lost.masked_fill(torch.tensor(widths) >= total, 0.0)
        return -self.reads(space) * torch.log1p(-lost.clamp(0, MOST))

    def reads(self, space: Space) -> float:
        """How often a loss counts, the mean over the parents: once for every layer input that the
        space is; of transformers models, once for every unit that reads it."""
        if not is_pretrained(self.setting.skeleton.model):
            given = zip(self.sizes(space), self.places(space), strict=True)
            return sum(self.weights[m] * len(places) for m, places in given)
        order = self.setting.skeleton.nodes.order
        ends = sorted(order[u.output] for stage in self.setting.stages for u in stage.units)
        nodes = {view.node for view in self._views.get(space.index, ())}
        units = {bisect_left(ends, order[node]) for node in nodes if node in order}
        return max(1, len(units)) * sum(self.weights[m] for m in self.sizes(space))

    @cached_property
    def _views(self) -> dict[int, list[View]]:
        return views_of(self.setting.skeleton)

    def guess(self, space: Space, widths: Sequence[int]) -> Tensor:
        """[widths] the same of features that nobody has seen: as if the share that is lost were a
        power of the share that is left out."""
        left_out = 1 - torch.tensor(widths, dtype=torch.float64) / sum(self.sizes(space).values())
        lost = left_out.clamp_min(0) ** (HEADS if nested(self._spaces, space.index) else FEATURES)
        return -self.reads(space) * torch.log1p(-lost.clamp_max(MOST))

    def _lost_of_units(self, space: Space, sizes: dict[int, int]) -> Tensor:
        second, importance = self._axis(space, sizes)
        units = torch.arange(len(second), device=second.device).chunk(sum(sizes.values()))
        return lost_without(second, importance, units).cpu()

    def _lost_in_order(self, space: Space, sizes: dict[int, int], width: int) -> Tensor:
        moments = self.statistics.moments[space.name]
        if rotation := self._rotation(space):
            found = self._directions(space, moments, rotation, sizes).lost()
            if self.streams:
                self._directed.clear()
            return found.cpu()
        second, given = self._second(moments), dict(zip(sizes, self.places(space), strict=True))
        if self.streams:
            self.statistics.moments.pop(space.name, None)
            del moments
        return ranked(second, sizes, given, self.weights, width).loss

    def _lost_where_they_meet(
        self, space: Space, sizes: dict[int, int], widths: Sequence[int]
    ) -> Tensor:
        moments = self.statistics.moments[space.name]
        covariance, given = moments.covariance(), dict(zip(sizes, self.places(space), strict=True))
        importance = importance_of(covariance, sizes, given, self.weights)
        similarity = similarity_of(moments)
        partitions = [self._meeting(space, similarity, sizes, width) for width in widths]
        return shares_lost(covariance, importance, partitions, self.weights).cpu()

    def _meeting(
        self, space: Space, similarity: Tensor, sizes: dict[int, int], width: int
    ) -> Partition:
        if width >= sum(sizes.values()):
            return union(sizes)
        if self.options.match == "identity":
            return positional_partition(space.name, sizes, width)
        return self._heard(space, self.options.match, similarity, sizes, width)


def _at(order: Tensor, widths: Sequence[int]) -> Tensor:
    return order[torch.tensor(widths).clamp_max(len(order) - 1)]
