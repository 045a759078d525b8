"""Convolutions, pooling and resampling: channels follow the weights, positions are pinned."""

from __future__ import annotations

from typing import Any

from hetmerge.tracing.axes import Axis, Dim, Mismatch, extent, take, unite
from hetmerge.tracing.call import Call, free
from hetmerge.tracing.rules.table import rule
from hetmerge.tracing.values import Val


def positions(call: Call, spatial: int) -> tuple[Dim, ...]:
    """The last dimensions of the result: neighbours matter, so their order is fixed."""
    return tuple(call.pinned(n, "spatial position") for n in call.shape[-spatial:])


def convolve(call: Call, spatial: int, groups: int, transposed: bool) -> Val:
    x, weight, bias = call.val("input"), call.val("weight"), call.get("bias")
    channel = -1 - spatial
    call.fix(x.dims, range(-spatial, 0), "spatial position")
    call.fix(weight.dims, range(-spatial, 0), "convolution kernel")
    inputs = x.dims[channel]
    if groups == 1:
        inner, out = weight.dims[:2] if transposed else weight.dims[1::-1]
        unite(inputs, inner)
        call.joint(*x.dims[:channel], inner, out)
    else:
        out = _grouped(call, x.dims[:channel], inputs, weight.dims, groups, transposed)
    call.consume(call.args["weight"], 0 if transposed else 1)
    if bias is not None:
        unite(call.as_val(bias).dims[0], out)
    return Val((*x.dims[:channel], out, *positions(call, spatial)))


def _grouped(
    call: Call,
    batch: tuple[Dim, ...],
    inputs: Dim,
    weight: tuple[Dim, ...],
    groups: int,
    transposed: bool,
) -> Dim:
    group = (Axis(groups),)
    into = free(extent(inputs) // groups)
    unite(inputs, (*group, *into))
    if transposed:
        unite(weight[0], (*group, *into))
        outof, out = weight[1], (*group, *weight[1])
    else:
        unite(weight[1], into)
        outof = free(extent(weight[0]) // groups)
        unite(weight[0], (*group, *outof))
        out = weight[0]
    call.joint(*batch, group, into, outof)
    return out


@rule("conv1d", "conv2d", "conv3d")
def conv(call: Call) -> Val:
    return convolve(call, int(call.name[4]), call.args["groups"], transposed=False)


@rule("conv_transpose1d", "conv_transpose2d", "conv_transpose3d")
def conv_transpose(call: Call) -> Val:
    return convolve(call, int(call.name[14]), call.args["groups"], transposed=True)


@rule("convolution", "_convolution")
def convolution(call: Call) -> Val:
    spatial = len(call.args["stride"])
    return convolve(call, spatial, call.args["groups"], bool(call.args["transposed"]))


@rule(
    *(f"{kind}_pool{n}d" for kind in ("avg", "max") for n in (1, 2, 3)),
    *(f"adaptive_{kind}_pool{n}d" for kind in ("avg", "max") for n in (1, 2, 3)),
    *(f"_adaptive_avg_pool{n}d" for n in (2, 3)),
    *(f"max_pool{n}d_with_indices" for n in (1, 2, 3)),
    *(f"upsample_nearest{n}d" for n in (1, 2, 3)),
    *(f"_upsample_nearest_exact{n}d" for n in (1, 2, 3)),
    *(f"reflection_pad{n}d" for n in (1, 2, 3)),
    *(f"replication_pad{n}d" for n in (1, 2, 3)),
    *("upsample_linear1d", "upsample_bilinear2d", "_upsample_bilinear2d_aa"),
    *("upsample_bicubic2d", "_upsample_bicubic2d_aa", "upsample_trilinear3d"),
)
def resample(call: Call) -> Any:
    spatial = int(call.name.partition("d_with")[0].removesuffix("_aa").rstrip("d")[-1])
    x = call.val("self" if "self" in call.args else "input")
    call.fix(x.dims, range(-spatial, 0), "spatial position")
    out = Val((*x.dims[:-spatial], *positions(call, spatial)))
    return (out, out) if isinstance(call.result, (tuple, list)) else out


@rule("pixel_shuffle")
def pixel_shuffle(call: Call) -> Val:
    x = call.val("self")
    factor = call.args["upscale_factor"]
    call.fix(x.dims, [-1, -2], "spatial position")
    channels, inside = take(x.dims[-3], extent(x.dims[-3]) // factor**2)
    call.pin(inside, "pixel shuffle")
    return Val((*x.dims[:-3], channels, *positions(call, 2)))


@rule("pixel_unshuffle")
def pixel_unshuffle(call: Call) -> Val:
    x = call.val("self")
    call.fix(x.dims, [-1, -2], "spatial position")
    inside = call.pinned(call.args["downscale_factor"] ** 2, "pixel unshuffle")
    return Val((*x.dims[:-3], (*x.dims[-3], *inside), *positions(call, 2)))


@rule("channel_shuffle", "native_channel_shuffle")
def channel_shuffle(call: Call) -> Val:
    x = call.val("self")
    outer, inner = take(x.dims[1], call.args["groups"])
    return Val((x.dims[0], (*inner, *outer), *x.dims[2:]))


@rule("im2col")
def im2col(call: Call) -> Val:
    """Patches as columns: [batch, channels * kernel, positions]."""
    x = call.val("self")
    if x.rank != 4:
        raise Mismatch("im2col without a batch dimension")
    call.fix(x.dims, [-1, -2], "spatial position")
    kernel = call.shape[1] // extent(x.dims[1])
    patch = (*x.dims[1], *call.pinned(kernel, "convolution kernel"))
    return Val((x.dims[0], patch, call.pinned(call.shape[2], "spatial position")))
