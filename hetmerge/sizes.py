"""Partitions of the right widths, before anything has been compared."""

from __future__ import annotations

from functools import cached_property

import torch

from hetmerge.gathering import visits_of
from hetmerge.matching import Matcher
from hetmerge.partition import Partition
from hetmerge.scope import Scope
from hetmerge.tracing.spaces import Space


class SizesOnly(Matcher):
    """A matcher that needs no moments; what meets what is not known."""

    def _seen(self, space: Space) -> bool:
        return space.index in self._visited

    @cached_property
    def _visited(self) -> set[int]:
        visits = visits_of(self.setting, Scope(alone=True))
        return {visit.space for visit in visits if not (visit.kind or visit.nest)}

    def _unseen(self, space: Space, sizes: dict[int, int], target: int) -> Partition:
        return Partition(target, {m: torch.arange(count) % target for m, count in sizes.items()})
