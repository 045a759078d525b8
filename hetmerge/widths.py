"""How wide a space becomes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from hetmerge.errors import InputError
from hetmerge.tracing.spaces import Space

Width = str | float | Mapping[str, int | float | str]


def target_width(width: Width, name: str, sizes: list[int]) -> int:
    choice = width.get(name, width.get("default", "max")) if isinstance(width, Mapping) else width
    if choice == "max":
        return max(sizes)
    if choice == "union":
        return sum(sizes)
    if (
        isinstance(choice, bool)
        or not isinstance(choice, (int, float))
        or not 0 < choice < math.inf
    ):
        raise InputError(
            f"width: got {choice!r} for space {name!r}; allowed: 'max', 'union', a positive factor "
            "of the widest parent, or a dict of space name -> such a value or a number of features"
        )
    absolute = isinstance(width, Mapping) and isinstance(choice, int)
    target = choice if absolute else round(choice * max(sizes))
    if len(sizes) == 1:
        return sum(sizes)
    return int(min(max(target, 1), sum(sizes)))


def check_names(width: Width, spaces: Sequence[Space]) -> None:
    if isinstance(width, Mapping):
        known = {space.name for space in spaces} | {"default"}
        wrong = sorted(set(width) - known)
        if wrong:
            raise InputError(f"width: no space {wrong[0]!r}; spaces are {', '.join(sorted(known))}")
