"""The same function in other weights."""

from __future__ import annotations

import copy
import math

import torch
from torch import Tensor, nn

import hetmerge as hm
from hetmerge.tracing.expr import Product


def disguised(model: nn.Module, inputs: dict[str, Tensor], seed: int = 4) -> nn.Module:
    """Every space that zip and permute match by activations in another order.

    The heads inside a group of grouped-query attention are out: they meet by position (match="pca"
    keeps them whole). Inside every head or group the order is another one.
    """
    graph = hm.trace(model, (), inputs)
    inside = {
        expr.parts[1].space
        for exprs in graph.tensors.values()
        for expr in exprs
        if isinstance(expr, Product) and len(expr.parts) > 2
    }
    random = torch.Generator().manual_seed(seed)
    orders = {}
    for space in graph.spaces:
        if space.free and space.index not in inside:
            sizes = [graph.spaces[k].size for k in space.structure]
            count = math.prod(sizes)
            rows = [torch.randperm(space.size, generator=random) for _ in range(count)]
            orders[space.index] = torch.stack(rows).reshape(*sizes, -1)
    assert orders
    other = copy.deepcopy(model)
    other.load_state_dict(graph.permute(dict(model.state_dict()), orders))
    return other
