"""Corrections that only rescale: BatchNorm re-estimation and REPAIR; and norms made whole again."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from hetmerge.execution import Walker
from hetmerge.layers import Layer
from hetmerge.network import Network

if TYPE_CHECKING:
    from hetmerge.refit import Fitter
    from hetmerge.targets import Target

REPAIRS = ("none", "bn", "repair")
_SMALL = 1e-6


def rescale(fitter: Fitter, layer: Layer) -> None:
    """Give each feature of a layer's output the mean and deviation it should have.

    "bn": those a re-estimated BatchNorm would give it, from the parents' averaged beta and gamma;
    "repair" (arXiv 2211.08403): the averages of the parents' own statistics.
    """
    if fitter.repair == "none" or fitter.targets.is_head(layer) or layer.groups < 1:
        return
    if fitter.repair == "bn" and not layer.norm:
        return
    target = fitter.targets.of(layer.tail, layer)
    if target.writes:  # its features are no feature's of a parent
        return
    wanted = _wanted(fitter, layer, target)
    mean, std = _statistics(fitter.walker.value(layer.tail), layer.feature_dim)
    factor = torch.where(std > _SMALL, wanted[1] / std.clamp_min(_SMALL), torch.ones_like(std))
    state = fitter.merged.state
    weight = state[layer.weight]
    shape = [1] * weight.dim()
    shape[-1 if layer.transposed else 0] = -1
    state.put(layer.weight, weight * factor.reshape(shape).to(weight.dtype))
    if layer.bias:
        bias = state[layer.bias]
        state.put(layer.bias, ((bias.double() - mean) * factor + wanted[0]).to(bias))
        if layer.own_bias and layer.own_bias != layer.bias:
            own = state[layer.own_bias]
            state.put(layer.own_bias, own * factor.to(own.dtype))
    fitter.walker.forget(layer.node)


def _wanted(fitter: Fitter, layer: Layer, target: Target) -> tuple[Tensor, Tensor]:
    where = fitter.merged.state.device
    mean, std = torch.zeros(2, target.width, dtype=torch.float64, device=where)
    for m, batches in target.values:
        if batches is None:
            continue
        mine = _scales(fitter, layer, m) if fitter.repair == "bn" else None
        found = mine or _statistics(batches, layer.feature_dim)
        labels, factor = (x.to(where) for x in target.factors[m])
        mean.index_add_(0, labels, found[0] * factor)
        std.index_add_(0, labels, found[1] * factor)
    return mean, std


def _scales(fitter: Fitter, layer: Layer, parent: int) -> tuple[Tensor, Tensor] | None:
    """(beta, |gamma|) of the parent's own norm at this layer."""
    link = fitter.setting.links[parent]
    name = link.tensors.get(f"{layer.norm}.bias")
    if name is None:
        return None
    gamma, beta = link.parent.scales[name.removesuffix(".bias")]
    return beta.double(), gamma.double()


def _statistics(values: list[Tensor], dim: int) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation per feature over all batches and positions, float64."""
    parts = []
    for value in values:
        others = [d for d in range(value.dim()) if d != dim % value.dim()]
        mean = value.mean(others, keepdim=True)
        variance = (value - mean).square_().mean(others)  # much faster than var_mean
        parts.append(
            (value.numel() // value.shape[dim], mean.flatten().double(), variance.double())
        )
    count = sum(n for n, _, _ in parts)
    mean = torch.stack([m * (n / count) for n, m, _ in parts]).sum(0)
    spread = [(v + (m - mean).square()) * (n / count) for n, m, v in parts]
    return mean, torch.stack(spread).sum(0).sqrt()


def realise_norm(merged: Network, walker: Walker, layer: Layer) -> None:
    """Give a folded BatchNorm the statistics of its input, with the same function as before.

    The network can then be trained on: its running statistics are those of the data.
    """
    if not layer.norm:
        return
    norm = merged.model.get_submodule(layer.norm)
    assert isinstance(norm, nn.modules.batchnorm._BatchNorm)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    mean, std = _statistics(walker.value(layer.node), layer.feature_dim)
    variance = std.square()
    norm.running_mean.copy_(mean)
    norm.running_var.copy_(variance)
    scale = (norm.running_var.double() + norm.eps).sqrt()
    norm.bias.add_(norm.running_mean * norm.weight)
    norm.weight.mul_(scale.to(norm.weight.dtype))
    walker.forget(layer.node, itself=False)
