"""The same function in other weights."""

from __future__ import annotations

import copy
import math

import torch
from torch import Tensor, nn

import hetmerge as hm


def disguised(model: nn.Module, inputs: dict[str, Tensor], seed: int = 4) -> nn.Module:
    """Every space in another order; inside every head or group in one of its own."""
    graph = hm.trace(model, (), inputs)
    random = torch.Generator().manual_seed(seed)
    orders = {}
    for space in graph.spaces:
        if space.free:
            sizes = [graph.spaces[k].size for k in space.structure]
            count = math.prod(sizes)
            rows = [torch.randperm(space.size, generator=random) for _ in range(count)]
            orders[space.index] = torch.stack(rows).reshape(*sizes, -1)
    assert orders
    other = copy.deepcopy(model)
    other.load_state_dict(graph.permute(dict(model.state_dict()), orders))
    return other
