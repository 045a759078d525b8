"""Numbers of heads that a family's configuration allows."""

from __future__ import annotations

import itertools
from collections.abc import Mapping

from hetmerge.huggingface import is_likely, is_pretrained
from hetmerge.partition import Partition
from hetmerge.setting import Setting
from hetmerge.tracing.expr import Leaf, Product
from hetmerge.uniform import alike, widen

MOST = 8  # heads per group, or groups, that are added at most


def fit_family(
    setting: Setting, partitions: Mapping[int, Partition]
) -> tuple[dict[int, Partition], list[str]]:
    """Add empty heads until the family has a configuration; they add nothing to any output.

    Some families want the hidden size to be a multiple of the number of heads, whatever the size of
    a head is. If nothing helps the partitions stay as they are, and building the model says why.

    Returns:
        The partitions, and remarks.
    """
    found = dict(partitions)
    widths = {k: partition.width for k, partition in found.items()}
    if not is_pretrained(setting.skeleton.model) or is_likely(setting, widths):
        return found, []
    spaces = setting.skeleton.graph.spaces
    leading = _leading(setting)
    heads = [group for group in alike(setting, found) if leading.intersection(group)]
    for added in _additions(heads, widths):
        more = {k: widths[k] + n for group, n in zip(heads, added, strict=True) for k in group}
        if is_likely(setting, {**widths, **more}):
            notes = [
                f"space {spaces[group[0]].name!r} (and {len(group) - 1} like it): "
                f"{widths[group[0]]} -> {more[group[0]]}, the family allows no other number; the "
                "added ones are empty"
                for group, n in zip(heads, added, strict=True)
                if n
            ]
            return {k: widen(p, more[k]) if k in more else p for k, p in found.items()}, notes
    return found, []


def _leading(setting: Setting) -> set[int]:
    """Spaces that count heads or groups: in some axis, features of another space stand in them."""
    return {
        part.space
        for exprs in setting.skeleton.graph.tensors.values()
        for expr in exprs
        if isinstance(expr, Product)
        for part in expr.parts[:-1]
        if isinstance(part, Leaf)
    }


def _additions(heads: list[list[int]], widths: Mapping[int, int]) -> list[tuple[int, ...]]:
    """How many to add to each group of spaces, the fewest heads in all first."""

    def total(added: tuple[int, ...]) -> int:
        count = 1
        for group, n in zip(heads, added, strict=True):
            count *= widths[group[0]] + n
        return count

    return sorted(itertools.product(range(MOST + 1), repeat=len(heads)), key=total)[1:]
