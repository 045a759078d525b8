"""Operators that act entry by entry, with broadcasting."""

from __future__ import annotations

from hetmerge.tracing.axes import Dim, extent, unite
from hetmerge.tracing.call import Call, free
from hetmerge.tracing.rules.table import rule
from hetmerge.tracing.values import Const, Family, Origin, Val, joined

_UNARY = """
    abs absolute acos acosh alias asin asinh atan atanh bitwise_not ceil celu clip clone
    clamp clamp_max clamp_min contiguous cos cosh deg2rad detach dropout elu erf erfc exp exp2 expm1
    alpha_dropout feature_dropout feature_alpha_dropout floor frac gelu hardshrink hardsigmoid
    hardswish hardtanh isfinite isinf isnan leaky_relu lift_fresh_copy log log10 log1p log2
    log_sigmoid logical_not logit mish nan_to_num neg negative positive rad2deg reciprocal relu
    relu6 round rsqrt selu sgn sigmoid sign silu sin sinc sinh softplus softshrink sqrt square tan
    tanh tanhshrink threshold to _to_copy _conj _prelu_kernel
"""
UNARY = frozenset(_UNARY.split())
_NARY = """
    __and__ __or__ __xor__ add addcdiv addcmul atan2 bitwise_and bitwise_or bitwise_xor copysign div
    divide eq float_power floor_divide fmax fmin fmod ge greater greater_equal gt heaviside hypot le
    lerp less less_equal logaddexp logical_and logical_or logical_xor lt masked_fill maximum minimum
    mul multiply ne not_equal pow remainder rsub sub subtract true_divide where xlogy
"""
NARY = frozenset(_NARY.split())


def broadcast(values: list[Val]) -> Val:
    """Unite the dimensions that are broadcast together."""
    rank = max(value.rank for value in values)
    return Val(
        tuple(_common([v.dims[i] for v in values if v.rank >= -i]) for i in range(-rank, 0)),
        _common_origin(values, rank),
    )


def _common(dims: list[Dim]) -> Dim:
    wide = [dim for dim in dims if extent(dim) != 1]
    for dim in wide[1:]:
        unite(wide[0], dim)
    return wide[0] if wide else ()


def _common_origin(values: list[Val], rank: int) -> Origin | None:
    if any(value.origin is None for value in values):
        return None
    return tuple(
        joined(
            value.origin[i]
            for value in values
            if value.origin is not None and value.rank >= -i and extent(value.dims[i]) > 1
        )
        for i in range(-rank, 0)
    )


@rule(*sorted(UNARY | NARY))
def elementwise(call: Call) -> Val:
    return broadcast(call.tensors())


@rule("type_as")
def like_self(call: Call) -> Val:
    return call.val("self")


@rule("prelu")
def prelu(call: Call) -> Val:
    x, weight = call.val("self"), call.val("weight")
    if extent(weight.dims[0]) > 1:
        unite(x.dims[1], weight.dims[0])
    return Val(x.dims)


@rule("native_dropout")
def native_dropout(call: Call) -> tuple[Val, Val]:
    x = call.val("input")
    return x, Val(x.dims)


def expanded(value: Val, shape: tuple[int, ...]) -> Val:
    """Broadcast to a shape; repeated dimensions become fresh axes."""
    missing = len(shape) - value.rank
    dims: list[Dim] = [()] * missing + list(value.dims)
    out = tuple(dim if extent(dim) == n else free(n) for dim, n in zip(dims, shape, strict=True))
    if value.origin is None:
        return Val(out)
    return Val(out, (frozenset(),) * missing + value.origin)


@rule("expand", "expand_as", "broadcast_to")
def expand(call: Call) -> Val:
    return expanded(call.val("self"), call.shape)


@rule("copy")
def copy(call: Call) -> Val:
    return expanded(call.val("src"), call.shape)


@rule("fill")
def fill(call: Call) -> Val | Const:
    value = call.args["value"]
    if isinstance(value, (Val, Const, Family)):
        return expanded(call.as_val(value), call.shape)
    return Const(call.shape, frozenset(), "a constant")
