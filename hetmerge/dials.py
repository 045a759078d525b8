"""What a budget can choose: spaces that have one width, and the widths it may be."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from itertools import chain

import numpy as np

from hetmerge.huggingface import is_likely, is_pretrained
from hetmerge.matching import Matcher
from hetmerge.tracing.spaces import Space
from hetmerge.uniform import alike, is_uniform

POINTS = 64  # widths at most that are tried of one space; of families of one width twice as many


@dataclass(frozen=True)
class Dial:
    """Spaces of one width.

    Attributes:
        spaces: their indices; more than one where a family needs them equal.
        compared: those of them whose losses count; the others are not seen.
        widths: ascending, those that are tried.
    """

    spaces: tuple[int, ...]
    compared: tuple[int, ...]
    widths: list[int]

    def half(self, widest: int, wide: bool) -> Dial:
        """From the widest parent on, or up to it."""
        widths = [n for n in self.widths if (n >= widest if wide else n <= widest)]
        return Dial(self.spaces, self.compared, widths)


def dials_of(matcher: Matcher, seen: Collection[int], widest: Mapping[int, int]) -> list[Dial]:
    """The spaces whose width can be chosen; the others keep that of `max`.

    Where a family needs the units of a stage alike, the same place in all of them is one dial, and
    what is outside the units has the widths that its configuration allows.

    Args:
        seen: spaces whose features are seen in activations.
        widest: the width of every space at `max`.
    """
    setting = matcher.setting
    spaces = setting.skeleton.graph.spaces
    free = [
        space.index
        for space in spaces
        if space.index in seen
        and matcher.adjustable(space)
        and any(map(len, matcher.places(space)))
    ]
    if not is_uniform(setting):
        return [Dial((k,), (k,), _tried(matcher, spaces[k])) for k in free]
    groups = alike(setting, [space.index for space in spaces if matcher.sizes(space)])
    dials = [_together(matcher, group, [k for k in group if k in free]) for group in groups]
    if is_pretrained(setting.skeleton.model):
        outside = set(free) - set(chain.from_iterable(groups))
        dials += [_allowed(matcher, spaces[k], widest) for k in sorted(outside)]
    return [dial for dial in dials if len(dial.widths) > 1]


def _together(matcher: Matcher, group: list[int], compared: list[int]) -> Dial:
    """Spaces of equal width, where those of several parents have equal sizes; a parent's own can be
    wider than it is there, and narrower only where it is seen."""
    sizes = {k: matcher.sizes(matcher.setting.skeleton.graph.spaces[k]) for k in group}
    shared = {tuple(sizes[k].values()) for k in compared if len(sizes[k]) > 1}
    if len(shared) != 1:
        return Dial(tuple(group), tuple(compared), [])
    unseen = [size for k in group if k not in compared for size in sizes[k].values()]
    widths = _rounded(matcher, list(*shared))
    least = max(unseen, default=1)
    return Dial(tuple(group), tuple(compared), [n for n in widths if n >= least])


def _allowed(matcher: Matcher, space: Space, widest: Mapping[int, int]) -> Dial:
    """A space outside the units, at the widths at which the family still has a configuration."""
    setting, k = matcher.setting, space.index
    tried = _rounded(matcher, list(matcher.sizes(space).values()))
    widths = [n for n in tried if is_likely(setting, {**widest, k: n})]
    return Dial((k,), (k,), widths)


def _tried(matcher: Matcher, space: Space) -> list[int]:
    """Up to 64 widths, from the narrowest possible to the union."""
    least, widest, total = _ends(matcher, list(matcher.sizes(space).values()))
    tried = np.unique(np.linspace(least, total, POINTS).round().astype(int))
    return sorted({*tried.tolist(), widest})


def _rounded(matcher: Matcher, sizes: list[int]) -> list[int]:
    """Multiples of a power of two, so that heads divide them and machines like them; the ends."""
    least, widest, total = _ends(matcher, sizes)
    step = 1 << max(0, (total // POINTS).bit_length() - 1)
    return sorted({*range(-(-least // step) * step, total, step), least, widest, total})


def _ends(matcher: Matcher, sizes: list[int]) -> tuple[int, int, int]:
    """The narrowest that a space of these sizes can be, the widest parent's, the union."""
    widest, total = max(sizes), sum(sizes)
    return (1 if matcher.options.match in ("zip", "select", "pca") else widest), widest, total
