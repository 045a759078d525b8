"""Spaces as a table for people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from hetmerge.tracing.spaces import Space

SHOWN = 3  # reasons and places per space; the rest is counted


def table(
    model: str, spaces: Sequence[Space], dead: Sequence[str], unknown: Mapping[str, int]
) -> str:
    """A summary line, one block per space, and what could not be followed."""
    free = sum(space.free for space in spaces)
    lines = [f"{model}: {len(spaces)} spaces, {free} free, {len(spaces) - free} pinned"]
    width = max((len(space.name) for space in spaces), default=0)
    for space in spaces:
        state = "free" if space.free else "pinned"
        lines.append(f"{space.name:<{width}}  {space.size:>6}  {state}{_given(space, spaces)}")
        lines.append("    used by " + _some([f"{p.tensor}[{p.dim}]" for p in space.where]))
        if space.pins:
            lines.append("    pinned: " + _some(space.pins, "; "))
    if dead:
        lines.append("parameters that reach no output: " + ", ".join(dead))
    if unknown:
        counts = ", ".join(f"{name} ({count})" for name, count in unknown.items())
        lines.append("operators without a rule (all they touch is pinned): " + counts)
    return "\n".join(lines)


def _given(space: Space, spaces: Sequence[Space]) -> str:
    if not space.structure:
        return ""
    return ", separately per index of " + ", ".join(spaces[i].name for i in space.structure)


def _some(items: Sequence[str], separator: str = ", ") -> str:
    unique = list(dict.fromkeys(items))
    shown = separator.join(unique[:SHOWN])
    more = len(unique) - SHOWN
    return f"{shown} and {more} more" if more > 0 else shown
