"""What a budget can choose: spaces that have one width, and the widths it may be."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import chain

import numpy as np

from hetmerge.gathering import visits_of
from hetmerge.huggingface import is_pretrained
from hetmerge.matching import Matcher
from hetmerge.nested import nested
from hetmerge.scope import Scope
from hetmerge.streams import unit_sizes
from hetmerge.tracing.spaces import Space
from hetmerge.uniform import alike, is_uniform

POINTS = 64  # widths at most that are tried of one space; in families of one width up to 256


@dataclass(frozen=True)
class Dial:
    """Spaces of one width.

    Attributes:
        spaces: their indices; more than one where a family needs them equal.
        compared: those of them whose losses count; the others are not seen.
        widths: ascending, those that are tried.
        kind: "stream" or "heads", which a family's configuration may tie to one another, or
            "inner", which it does not.
    """

    spaces: tuple[int, ...]
    compared: tuple[int, ...]
    widths: list[int]
    kind: str = "inner"

    def at_least(self, width: int) -> Dial:
        """Without narrower ones."""
        return replace(self, widths=[n for n in self.widths if n >= width])


def dials_of(matcher: Matcher) -> list[Dial]:
    """The spaces whose width can be chosen; the others keep that of `max`.

    Where a family needs the units of a stage alike, the same place in all of them is one dial. Of
    transformers models the streams and the numbers of heads (or groups of them) are dials too.
    """
    setting = matcher.setting
    spaces = setting.skeleton.graph.spaces
    visits = visits_of(setting, Scope(alone=True, whole=True))
    seen = {visit.space for visit in visits if visit.kind in ("", "axis") and not visit.nest}
    free = [space for space in spaces if space.index in seen and _adjustable(matcher, space)]
    flat = [space.index for space in free if not nested(spaces, space.index)]
    if not is_uniform(setting):
        return [Dial((k,), (k,), _tried(matcher, spaces[k])) for k in flat]
    pretrained = is_pretrained(setting.skeleton.model)
    groups = alike(setting, [space.index for space in spaces if matcher.sizes(space)])
    dials = [_together(matcher, group, [k for k in group if k in flat]) for group in groups]
    if pretrained:
        heads = [space.index for space in free if space.index not in flat]
        dials += [_heads(matcher, group, [k for k in group if k in heads]) for group in groups]
        outside = set(flat) - set(chain.from_iterable(groups))
        for k in sorted(outside):
            widths = _rounded(matcher, list(matcher.sizes(spaces[k]).values()))
            dials.append(Dial((k,), (k,), widths, "stream"))
    return [dial for dial in dials if len(dial.widths) > 1]


def _adjustable(matcher: Matcher, space: Space) -> bool:
    """Free, and flat or of heads of one size that can be kept whole; read by some layer."""
    setting, sizes = matcher.setting, matcher.sizes(space)
    if not sizes or not matcher.movable(space, sizes):
        return False
    if nested(setting.skeleton.graph.spaces, space.index):
        return len(sizes) > 1 and len(unit_sizes(setting, space.index)) == 1
    return any(map(len, matcher.places(space)))


def _together(matcher: Matcher, group: list[int], compared: list[int]) -> Dial:
    """Spaces of equal width, where those of several parents have equal sizes; a parent's own can be
    wider than it is there, and narrower only where it is seen."""
    shared = _shared(matcher, compared)
    widths = _rounded(matcher, shared) if shared else []
    least = _least_unseen(matcher, group, compared)
    return Dial(tuple(group), tuple(compared), [n for n in widths if n >= least])


def _heads(matcher: Matcher, group: list[int], compared: list[int]) -> Dial:
    """The same of heads; only "pca" can make them fewer than in the parent with most."""
    shared = _shared(matcher, compared)
    if not shared:
        return Dial(tuple(group), tuple(compared), [])
    least = 1 if matcher.options.match == "pca" else max(shared)
    least = max(least, _least_unseen(matcher, group, compared))
    return Dial(tuple(group), tuple(compared), list(range(least, sum(shared) + 1)), "heads")


def _shared(matcher: Matcher, compared: list[int]) -> list[int]:
    """Sizes of the spaces of several parents, which have to be the same in all; else nothing."""
    spaces = matcher.setting.skeleton.graph.spaces
    sizes = [list(matcher.sizes(spaces[k]).values()) for k in compared]
    shared = [found for found in sizes if len(found) > 1]
    return shared[0] if shared and all(found == shared[0] for found in shared) else []


def _least_unseen(matcher: Matcher, group: list[int], compared: list[int]) -> int:
    spaces = matcher.setting.skeleton.graph.spaces
    unseen = [spaces[k] for k in group if k not in compared]
    return max((n for space in unseen for n in matcher.sizes(space).values()), default=1)


def _tried(matcher: Matcher, space: Space) -> list[int]:
    """Up to 64 widths, from the narrowest possible to the union."""
    least, widest, total = _ends(matcher, list(matcher.sizes(space).values()))
    tried = np.unique(np.linspace(least, total, POINTS).round().astype(int))
    return sorted({*tried.tolist(), widest})


def _rounded(matcher: Matcher, sizes: list[int]) -> list[int]:
    """Multiples of a power of two, so that heads divide them and machines like them; the ends."""
    least, widest, total = _ends(matcher, sizes)
    step = 1 << max(0, (total // (2 * POINTS)).bit_length() - 1)
    return sorted({*range(-(-least // step) * step, total, step), least, widest, total})


def _ends(matcher: Matcher, sizes: list[int]) -> tuple[int, int, int]:
    """The narrowest that a space of these sizes can be, the widest parent's, the union."""
    widest, total = max(sizes), sum(sizes)
    return (1 if matcher.options.match in ("zip", "select", "pca") else widest), widest, total
