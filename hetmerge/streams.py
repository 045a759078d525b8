"""Whole axes of heads and groups: where they are read, and their values."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from hetmerge.batches import Call, comparable
from hetmerge.execution import Walker
from hetmerge.setting import Setting
from hetmerge.tracing.expr import Leaf, Product, size


def heads_inside(setting: Setting) -> dict[int, int]:
    """Space of the heads inside groups -> space of the groups, where all heads can be seen and
    some parent has more than one in a group."""
    found = {}
    for outer, node in whole_axes(setting).items():
        expr = setting.skeleton.graph.values[node][-1]
        inner = expr.parts[1] if isinstance(expr, Product) and len(expr.parts) > 2 else None
        if isinstance(inner, Leaf) and setting.skeleton.graph.spaces[inner.space].free:
            members = setting.members(inner.space)
            same = members == setting.members(outer)
            if same and max(setting.width(m, inner.space) for m in members) > 1:
                found[inner.space] = outer
    return found


def whole_axes(setting: Setting) -> dict[int, str]:
    """Space of heads or groups -> the skeleton node where all of them are read."""
    found = {}
    for space in setting.skeleton.graph.spaces:
        if space.free and len(setting.members(space.index)) > 1:
            axis = whole_axis(setting, space.index)
            found.update({space.index: axis} if axis else {})
    return found


def unit_sizes(setting: Setting, outer: int) -> set[int]:
    """Features in a unit of an outer space, in the parents that have it; empty of other spaces."""
    found, axis = set(), whole_axis(setting, outer)
    for m, node in members_at(setting, axis).items() if axis else ():
        features = size(setting.parents[m].graph.values[node][-1])
        found.add(features // setting.width(m, outer))
    return found


def whole_axis(setting: Setting, outer: int) -> str | None:
    """The skeleton node from which a layer reads all units of `outer` with what is inside them."""
    for layer in setting.skeleton.layers:
        exprs = setting.skeleton.graph.values.get(layer.source)
        expr = exprs[layer.feature_dim] if exprs else None
        first = expr.parts[0] if isinstance(expr, Product) else None
        if isinstance(first, Leaf) and first.space == outer and layer.feature_dim == -1:
            return layer.source
    return None


def whole_rows(
    setting: Setting, walkers: Sequence[Walker], call: Call, source: str
) -> list[Tensor]:
    """The values of a whole axis in the parents that have it, [positions, features] each."""
    found = []
    for m, node in members_at(setting, source).items():
        value = comparable(walkers[m].value(node)[0], call, m)
        found.append(value.reshape(-1, value.shape[-1]))
    return found


def members_at(setting: Setting, name: str) -> dict[int, str]:
    """Parent -> its node that plays the part of a node of the skeleton."""
    found = {m: link.node(name) for m, link in enumerate(setting.links)}
    return {m: node for m, node in found.items() if node is not None}
