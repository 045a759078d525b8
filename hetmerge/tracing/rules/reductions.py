"""Operators that combine the entries along a dimension: reductions, softmax, scans, sorting."""

from __future__ import annotations

import operator
from typing import Any

from hetmerge.tracing.call import Call
from hetmerge.tracing.rules.elementwise import elementwise
from hetmerge.tracing.rules.table import rule
from hetmerge.tracing.values import Val


def reduced_dims(call: Call, rank: int) -> list[int]:
    """The dimensions an operator reduces, counted from the front."""
    dim = call.get("dim")
    if dim is None or dim == []:
        return list(range(rank))
    return [i % rank for i in ([dim] if isinstance(dim, int) else dim)] if rank else []


def without(value: Val, dims: list[int], keepdim: bool) -> Val:
    kept = [i for i in range(value.rank) if keepdim or i not in dims]
    out = tuple(() if i in dims else value.dims[i] for i in kept)
    if value.origin is None:
        return Val(out)
    return Val(out, tuple(frozenset() if i in dims else value.origin[i] for i in kept))


_REDUCTIONS = """
    all amax amin any count_nonzero linalg_vector_norm logsumexp mean nanmean nansum norm prod
    special_logsumexp std sum var
"""


@rule(*_REDUCTIONS.split())
def reduce(call: Call) -> Val:
    x = call.val("self")
    dims = reduced_dims(call, x.rank)
    call.mix(x.dims, dims)
    return without(x, dims, bool(call.get("keepdim", False)))


@rule("std_mean", "var_mean")
def reduce_pair(call: Call) -> tuple[Val, Val]:
    value = reduce(call)
    return value, value


@rule("argmax", "argmin")
def arg_reduce(call: Call) -> Val:
    x = call.val("self")
    dims = reduced_dims(call, x.rank)
    call.fix(x.dims, dims, "the position of an extreme value is used")
    return Val(without(x, dims, bool(call.get("keepdim", False))).dims)


@rule("max", "min")
def extreme(call: Call) -> Any:
    if "other" in call.args:
        return elementwise(call)
    value = reduce(call)
    if not isinstance(call.result, (tuple, list)):
        return value
    if uses_result(call, 1):
        value = arg_reduce(call)
    return value, value


def uses_result(call: Call, index: int) -> bool:
    """Whether anything reads one result of an operator with several."""
    return any(
        user.target is not operator.getitem or (user.args[1] == index and bool(user.users))
        for user in call.node.users
    )


@rule("softmax", "log_softmax", "_softmax", "_log_softmax", "_safe_softmax", "softmin")
def softmax(call: Call) -> Val:
    x = call.val("self")
    call.mix(x.dims, [call.args["dim"]])
    return Val(x.dims)


@rule("cumsum", "cumprod", "logcumsumexp", "flip", "roll")
def ordered(call: Call) -> Val:
    x = call.val("self")
    dims = call.get("dim", call.get("dims"))
    along = [dims] if isinstance(dims, int) else list(dims)
    call.fix(x.dims, along or range(x.rank), "order matters")
    return Val(x.dims)


@rule("tril", "triu")
def triangle(call: Call) -> Val:
    x = call.val("self")
    call.fix(x.dims, [-1, -2], "order matters")
    return Val(x.dims, x.origin)


@rule("sort", "topk")
def ranked(call: Call) -> tuple[Any, Any]:
    x = call.val("self")
    dim = call.get("dim", -1) % max(1, x.rank)
    if uses_result(call, 1):
        call.fix(x.dims, [dim], "the order of its values is used")
    call.mix(x.dims, [dim])
    dims = list(x.dims)
    dims[dim] = call.pinned(call.shape[dim], "ordered by value")
    return Val(tuple(dims)), Val(tuple(dims))


@rule("histc", "bincount")
def histogram(call: Call) -> Val:
    x = call.val("self")
    call.mix(x.dims, range(x.rank), weightless=False)
    return Val((call.pinned(call.shape[0], "bins of a histogram"),))


@rule("one_hot")
def one_hot(call: Call) -> Val:
    x = call.val("self")
    return Val((*x.dims, call.pinned(call.shape[-1], "classes of a one-hot code")))


@rule("diagonal")
def diagonal(call: Call) -> Val:
    x = call.val("self")
    ends = sorted((call.get("dim1", 0) % x.rank, call.get("dim2", 1) % x.rank))
    call.fix(x.dims, ends, "order matters")
    kept = [dim for i, dim in enumerate(x.dims) if i not in ends]
    return Val((*kept, call.pinned(call.shape[-1], "diagonal")))


@rule("unfold")
def windows(call: Call) -> Val:
    x = call.val("self")
    dim = call.args["dimension"] % max(1, x.rank)
    call.fix(x.dims, [dim], "order matters")
    dims = [*x.dims, call.pinned(call.shape[-1], "sliding window")]
    dims[dim] = call.pinned(call.shape[dim], "sliding window")
    return Val(tuple(dims))
