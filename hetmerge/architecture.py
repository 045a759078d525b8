"""Widths from a configuration: the shape that a user wants the merged model to have."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch.fx import Node

from hetmerge.errors import PlanError
from hetmerge.fields import fields_of, with_fields
from hetmerge.huggingface import follows, is_pretrained, merged_shapes
from hetmerge.lazy import empty
from hetmerge.partition import merged_size
from hetmerge.setting import Setting
from hetmerge.tracing import export
from hetmerge.tracing.expr import Concat, Expr, Leaf, leaves
from hetmerge.weights import tensors_of


@dataclass(frozen=True)
class Target:
    """An architecture of the base parent's class.

    Attributes:
        fields: of its configuration that were asked for.
        shapes: tensor -> its shape.
        values: node of the traced program -> the shape of its value.
    """

    fields: dict[str, int]
    shapes: dict[str, tuple[int, ...]]
    values: dict[str, tuple[int, ...]]


def target_of(setting: Setting, fields: Mapping[str, int]) -> Target:
    """The base parent's architecture with these fields changed.

    Raises:
        PlanError: the parents are no transformers models, a field is unknown, or the class does not
            take its value.
    """
    base: Any = setting.skeleton.model
    kind = type(base).__name__
    if not is_pretrained(base):
        raise PlanError(
            f"architecture: got {dict(fields)} for a {kind}; allowed for transformers models "
            "(give width= instead)"
        )
    numbers = [k for k, v in fields_of(base.config).items() if type(v) is int or follows(k, v)]
    for name in fields:
        if name not in numbers:
            raise PlanError(
                f"architecture: {name!r} is no whole number of a {kind}'s configuration; allowed: "
                f"{', '.join(numbers)}"
            )
    try:
        model = empty(type(base), with_fields(base.config, fields)).to("meta")
        program = export(model, *setting.call)
    except Exception as error:  # whatever a family's own code raises for sizes it does not allow
        why = " ".join(str(error).split()) or type(error).__name__
        raise PlanError(f"architecture: a {kind} cannot be {dict(fields)} ({why})") from error
    shapes = {name: tuple(t.shape) for name, t in tensors_of(model)}
    values = {n.name: _shape(n) for n in program.graph.nodes}
    return Target(dict(fields), shapes, values)


def widths_of(setting: Setting, target: Target) -> dict[str, int]:
    """Free space -> its width there.

    A space is known from every dimension in which all others are. What cannot be told keeps its
    width; :func:`check_reached` says whether that was right.

    Raises:
        PlanError: a space would be wider than in all parents together.
    """
    graph = setting.skeleton.graph
    dims = [
        (expr, length)
        for known, shapes in ((graph.tensors, target.shapes), (graph.values, target.values))
        for name, exprs in known.items()
        for expr, length in zip(exprs, shapes.get(name, ()), strict=False)
    ]
    found: dict[int, int] = {}
    before = -1
    while len(found) > before:
        before = len(found)
        for expr, length in dims:
            unknown = {leaf.space for leaf in leaves(expr) if leaf.space >= 0} - found.keys()
            if len(unknown) == 1 and (width := _divided(expr, length, min(unknown), found)):
                found[min(unknown)] = width
    for k, width in found.items():
        space, most = graph.spaces[k], sum(setting.width(m, k) for m in setting.members(k))
        if space.free and len(setting.members(k)) > 1 and width > most:
            raise PlanError(
                f"architecture: {target.fields} makes space {space.name!r} {width} wide; allowed: "
                f"what the parents have together, {most}"
            )
    return {graph.spaces[k].name: width for k, width in found.items() if graph.spaces[k].free}


def check_reached(setting: Setting, target: Target, widths: Mapping[int, int]) -> None:
    """The merge has the shapes that were asked for.

    Raises:
        PlanError: it has not.
    """
    made = merged_shapes(setting, widths)
    known = {name for name, _ in tensors_of(setting.skeleton.model)}
    for name in [*(name for name in target.shapes if name not in known), *made]:
        mine, wanted = made.get(name), target.shapes.get(name)
        if mine != wanted:
            raise PlanError(
                f"architecture: {target.fields} needs {name!r} to be {_shown(wanted)}, the merge "
                f"of these parents makes it {_shown(mine)}; depth is that of the deepest parent, "
                "heads are as many as in the parent with most or more (fewer only with "
                "match='pca', between heads of one size), and vocabularies, positions and rotary "
                "frequencies stay as they are"
            )


def _shape(node: Node) -> tuple[int, ...]:
    return tuple(getattr(node.meta.get("val"), "shape", ()))


def _shown(shape: tuple[int, ...] | None) -> str:
    return "absent" if shape is None else str(list(shape))


def _divided(expr: Expr, length: int, space: int, known: Mapping[int, int]) -> int | None:
    """The width of one space that makes an expression so long; None where it is not that simple."""
    if isinstance(expr, Leaf):
        return length if expr.space == space else None
    inside = [part for part in expr.parts if any(leaf.space == space for leaf in leaves(part))]
    others = [merged_size(part, known) for part in expr.parts if part not in inside]
    if isinstance(expr, Concat):
        share, left = divmod(length - sum(others), len(inside))
        same = all(part == inside[0] for part in inside)
        return _divided(inside[0], share, space, known) if same and not left else None
    share, left = divmod(length, math.prod(others))
    return _divided(inside[0], share, space, known) if len(inside) == 1 and not left else None
