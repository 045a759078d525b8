"""Operators that rearrange entries without changing them."""

from __future__ import annotations

import itertools
import math
import operator
from collections.abc import Sequence

from hetmerge.tracing.axes import Axis, Dim, Mismatch, extent, take
from hetmerge.tracing.call import Call, free
from hetmerge.tracing.operators import separable
from hetmerge.tracing.rules.elementwise import broadcast
from hetmerge.tracing.rules.indexing import sliced
from hetmerge.tracing.rules.table import rule
from hetmerge.tracing.values import Family, Origin, Val, joined

LARGEST_FAMILY = 8  # fused projections have 2 to 4 members; a longer axis is more likely heads


def viewed(value: Val, shape: Sequence[int]) -> Val:
    """Reshape in row-major order: split and join products."""
    rest: Dim = tuple(axis for dim in value.dims for axis in dim)
    dims: list[Dim] = []
    for n in shape:
        taken, rest = take(rest, n)
        dims.append(taken)
    return Val(tuple(dims), _viewed_origin(value, shape))


def _viewed_origin(value: Val, shape: Sequence[int]) -> Origin | None:
    if value.origin is None:
        return None
    old, new = _intervals(value.shape), _intervals(shape)
    return tuple(
        joined(
            value.origin[i] for i, (start, stop) in enumerate(old) if start < high and low < stop
        )
        for low, high in new
    )


def _intervals(shape: Sequence[int]) -> list[tuple[int, int]]:
    """The strides a dimension spans: [stride, stride * size)."""
    strides = [math.prod(shape[i + 1 :]) for i in range(len(shape))]
    return [(stride, stride * n) for stride, n in zip(strides, shape, strict=True)]


@rule("view", "reshape", "_unsafe_view", "flatten", "unflatten", "squeeze", "unsqueeze", "view_as",
      "reshape_as", "_reshape_alias", "ravel")  # fmt: skip
def view(call: Call) -> Val | Family:
    x, shape = call.val("self"), list(call.shape)
    for axis, count in enumerate(shape):
        if 1 < count <= LARGEST_FAMILY and separable(call.node, axis):
            try:
                family = viewed_apart(x, shape, axis)
            except Mismatch:
                continue
            if family is not None:
                return family
    return viewed(x, shape)


def viewed_apart(value: Val, shape: list[int], axis: int) -> Family | None:
    """Reshape so that the entries along ``axis`` need not share coordinates."""
    boundaries = set(itertools.accumulate(value.shape, operator.mul))
    last = next(
        (i for i in range(axis, len(shape)) if math.prod(shape[: i + 1]) in boundaries), axis
    )
    block = math.prod(shape[axis + 1 : last + 1])
    if block == 1:
        return None
    count = shape[axis]
    fused = viewed(value, [*shape[:axis], count * block, *shape[last + 1 :]])
    inner = shape[:axis] + shape[axis + 1 :]
    members = [sliced(fused, axis, i * block, (i + 1) * block) for i in range(count)]
    return Family(tuple(viewed(member, inner) for member in members), axis)


def permuted(value: Val, order: Sequence[int]) -> Val:
    """Reorder dimensions."""
    order = [i % value.rank for i in order]
    origin = None if value.origin is None else tuple(value.origin[i] for i in order)
    return Val(tuple(value.dims[i] for i in order), origin)


def swapped(rank: int, first: int, second: int) -> list[int]:
    order = list(range(rank))
    order[first], order[second] = order[second], order[first]
    return order


@rule("transpose", "swapaxes")
def transpose(call: Call) -> Val:
    x = call.val("self")
    first, second = list(call.args.values())[1:3]
    return permuted(x, swapped(x.rank, first, second))


@rule("permute")
def permute(call: Call) -> Val:
    return permuted(call.val("self"), call.args["dims"])


@rule("movedim", "moveaxis")
def movedim(call: Call) -> Val:
    x = call.val("self")
    source, target = (_listed(call.args[name]) for name in ("source", "destination"))
    places = {b % x.rank: a % x.rank for a, b in zip(source, target, strict=True)}
    others = iter(i for i in range(x.rank) if i not in places.values())
    return permuted(x, [places[i] if i in places else next(others) for i in range(x.rank)])


def _listed(dims: int | Sequence[int]) -> list[int]:
    return [dims] if isinstance(dims, int) else list(dims)


@rule("t", "numpy_T")
def reverse_dims(call: Call) -> Val:
    x = call.val("self")
    return permuted(x, range(x.rank - 1, -1, -1))


@rule("mT", "adjoint")
def matrix_transpose(call: Call) -> Val:
    x = call.val("self")
    return permuted(x, swapped(x.rank, -1, -2))


@rule("repeat")
def repeat(call: Call) -> Val:
    x, repeats = call.val("self"), call.args["repeats"]
    dims: list[Dim] = [()] * (len(repeats) - x.rank) + list(x.dims)
    return Val(tuple((*free(n), *dim) for n, dim in zip(repeats, dims, strict=True)))


@rule("tile")
def tile(call: Call) -> Val:
    x, repeats = call.val("self"), list(call.args["dims"])
    repeats = [1] * (x.rank - len(repeats)) + repeats
    dims: list[Dim] = [()] * (len(repeats) - x.rank) + list(x.dims)
    return Val(tuple((*free(n), *dim) for n, dim in zip(repeats, dims, strict=True)))


@rule("repeat_interleave")
def repeat_interleave(call: Call) -> Val:
    x, count = call.val("self"), int(call.args["repeats"])
    dims = (
        [tuple(axis for dim in x.dims for axis in dim)] if call.get("dim") is None else list(x.dims)
    )
    dims[call.get("dim") or 0] += free(count)
    return Val(tuple(dims))


@rule("view_as_complex")
def view_as_complex(call: Call) -> Val:
    """Pairs of real and imaginary parts, the last dimension, become one entry."""
    dims = call.val("self").dims
    call.pin(dims[-1], "real and imaginary parts")
    return Val(dims[:-1])


@rule("view_as_real")
def view_as_real(call: Call) -> Val:
    return Val((*call.val("self").dims, (Axis(2, f"real and imaginary parts ({call.here})"),)))


@rule("glu")
def glu(call: Call) -> Val:
    x = call.val("self")
    dim = call.get("dim", -1) % x.rank
    half = extent(x.dims[dim]) // 2
    return broadcast([sliced(x, dim, 0, half), sliced(x, dim, half, 2 * half)])
