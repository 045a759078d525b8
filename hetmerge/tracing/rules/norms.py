"""Normalisation layers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hetmerge.tracing.axes import Axis, Dim, extent, unite
from hetmerge.tracing.call import Call, free
from hetmerge.tracing.rules.elementwise import broadcast
from hetmerge.tracing.rules.table import rule
from hetmerge.tracing.values import Val


def _trailing(call: Call, names: Sequence[str]) -> Val:
    x = call.val("input")
    count = len(call.args["normalized_shape"])
    for name in names:
        if call.get(name) is not None:
            broadcast([Val(x.dims[-count:]), call.val(name)])
    call.mix(x.dims, range(-count, 0))
    return Val(x.dims)


@rule("layer_norm")
def layer_norm(call: Call) -> Val:
    return _trailing(call, ("weight", "bias"))


@rule("rms_norm")
def rms_norm(call: Call) -> Val:
    return _trailing(call, ("weight",))


def _statistics(value: Val, count: int) -> Val:
    return Val((*value.dims[:-count], *([()] * count)))


@rule("native_layer_norm")
def native_layer_norm(call: Call) -> tuple[Val, Val, Val]:
    out = layer_norm(call)
    statistics = _statistics(out, len(call.args["normalized_shape"]))
    return out, statistics, statistics


@rule("_fused_rms_norm")
def fused_rms_norm(call: Call) -> tuple[Val, Val]:
    out = rms_norm(call)
    return out, _statistics(out, len(call.args["normalized_shape"]))


def _per_channel(call: Call, channels: Dim) -> None:
    for name in ("weight", "bias", "running_mean", "running_var"):
        if call.get(name) is not None:
            unite(channels, call.val(name).dims[0])


@rule("batch_norm")
def batch_norm(call: Call) -> Val:
    x = call.val("input")
    _per_channel(call, x.dims[1])
    if call.get("training") or call.get("running_mean") is None:
        call.mix(x.dims, [i for i in range(x.rank) if i != 1])
    return Val(x.dims)


@rule("_native_batch_norm_legit_no_training")
def native_batch_norm(call: Call) -> tuple[Val, None, None]:
    return batch_norm(call), None, None


@rule("instance_norm")
def instance_norm(call: Call) -> Val:
    x = call.val("input")
    _per_channel(call, x.dims[1])
    call.mix(x.dims, range(2, x.rank))
    return Val(x.dims)


def _group(call: Call, groups: int) -> Val:
    x = call.val("input")
    group: Dim = (Axis(groups),) if groups > 1 else ()
    inner = free(extent(x.dims[1]) // groups)
    unite(x.dims[1], (*group, *inner))
    _per_channel(call, x.dims[1])
    split = (x.dims[0], group, inner, *x.dims[2:])
    call.mix(split, range(2, len(split)))
    return Val(x.dims)


@rule("group_norm")
def group_norm(call: Call) -> Val:
    return _group(call, call.args["num_groups"])


@rule("native_group_norm")
def native_group_norm(call: Call) -> tuple[Val, Any, Any]:
    groups = call.args["group"]
    out = _group(call, groups)
    group: Dim = call.pinned(groups, "statistics of groups")
    return out, Val((out.dims[0], group)), Val((out.dims[0], group))


@rule("_weight_norm")
def weight_norm(call: Call) -> Val:
    v, g, dim = call.val("v"), call.val("g"), call.get("dim", 0)
    call.mix(v.dims, [i for i in range(v.rank) if i != dim % v.rank], weightless=False)
    return broadcast([v, g])


@rule("_weight_norm_interface")
def weight_norm_interface(call: Call) -> tuple[Val, Val]:
    out = weight_norm(call)
    return out, Val(call.val("g").dims)
