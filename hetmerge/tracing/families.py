"""Operators on a family: tensors stacked along one dimension that need not share coordinates."""

from __future__ import annotations

from typing import Any

from hetmerge.tracing.call import Call
from hetmerge.tracing.operators import MOVES, SELECTS, moved
from hetmerge.tracing.rules.shape import permuted, swapped
from hetmerge.tracing.values import Family, Val


def follow(call: Call, family: Family) -> Any:
    """The result of an operator that keeps the members apart; None if it does not."""
    if call.name in SELECTS and call.args["dim"] % family.rank == family.axis:
        if call.name == "unbind":
            return list(family.members)
        return family.members[call.args["index"]]
    if call.name not in MOVES:
        return None
    axis = moved(call.node, family.axis, family.rank)
    if axis is None:
        return None
    return Family(tuple(_moved_member(call, m, family.axis, axis) for m in family.members), axis)


def _moved_member(call: Call, member: Val, before: int, after: int) -> Val:
    """Apply the operator to a member with a unit in the place of the stacked dimension."""
    value = _inserted(member, before)
    rank = value.rank
    if call.name == "transpose":
        value = permuted(value, swapped(rank, call.args["dim0"], call.args["dim1"]))
    elif call.name == "permute":
        value = permuted(value, call.args["dims"])
    elif call.name == "unsqueeze":
        value = _inserted(value, call.args["dim"] % (rank + 1))
    elif call.name == "squeeze" and call.result.dim() < rank:
        value = _removed(value, call.args["dim"] % rank)
    return _removed(value, after)


def _inserted(value: Val, at: int) -> Val:
    origin = value.origin
    return Val(
        (*value.dims[:at], (), *value.dims[at:]),
        None if origin is None else (*origin[:at], frozenset(), *origin[at:]),
    )


def _removed(value: Val, at: int) -> Val:
    origin = value.origin
    return Val(
        (*value.dims[:at], *value.dims[at + 1 :]),
        None if origin is None else (*origin[:at], *origin[at + 1 :]),
    )
