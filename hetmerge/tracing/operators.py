"""Names of operators, their arguments by schema name, and what their users do with an axis."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

MOVES = frozenset(
    {"transpose", "permute", "unsqueeze", "squeeze", "contiguous", "clone", "alias", "detach"}
)
SELECTS = frozenset({"select", "unbind"})


def operator_name(node: fx.Node) -> str:
    """``linear`` for an ATen operator, ``namespace::name`` for others."""
    target = node.target
    if not isinstance(target, torch._ops.OpOverload):
        return getattr(target, "__name__", str(target))
    namespace, _, name = target._schema.name.partition("::")
    return name if namespace == "aten" else f"{namespace}::{name}"


def named_arguments(node: fx.Node, args: Any, kwargs: Any) -> dict[str, Any]:
    """Arguments under their schema names, defaults filled in."""
    schema = getattr(node.target, "_schema", None)
    if schema is None:
        return {**{str(i): value for i, value in enumerate(args)}, **kwargs}
    named: dict[str, Any] = {}
    for i, argument in enumerate(schema.arguments):
        if i < len(args):
            named[argument.name] = args[i]
        elif argument.name in kwargs:
            named[argument.name] = kwargs[argument.name]
        elif argument.has_default_value():
            named[argument.name] = argument.default_value
    return named


def moved(node: fx.Node, axis: int, rank: int) -> int | None:
    """Where a moving operator puts dimension ``axis``; None if it cannot be followed."""
    name, args = operator_name(node), named_arguments(node, node.args, node.kwargs)
    if name == "transpose":
        first, second = (int(args[key]) % rank for key in ("dim0", "dim1"))
        return {first: second, second: first}.get(axis, axis)
    if name == "permute":
        return [i % rank for i in args["dims"]].index(axis)
    if name == "unsqueeze":
        return axis + 1 if args["dim"] % (rank + 1) <= axis else axis
    if name == "squeeze":
        dim = args.get("dim")
        if not isinstance(dim, int) or dim % rank == axis:
            return None
        return axis - 1 if dim % rank < axis else axis
    return axis


def separable(node: fx.Node, axis: int) -> bool:
    """Whether every use of dimension ``axis`` selects single entries of it."""
    rank = len(node.meta["val"].shape)
    for user in node.users:
        name = operator_name(user)
        if name in SELECTS:
            args = named_arguments(user, user.args, user.kwargs)
            if args["dim"] % rank == axis:
                continue
        if name in MOVES:
            position = moved(user, axis, rank)
            if position is not None and separable(user, position):
                continue
        return False
    return bool(node.users)
