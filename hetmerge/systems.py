"""The linear system of a layer group: its size, and its unknowns inside the layers' tensors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hetmerge.layers import Layer
from hetmerge.weights import State

MOST_ROWS = 60_000  # that a system is solved from
LEAST_ROWS = 10_000  # likewise, where there are as many
ROWS_PER_INPUT = 50  # likewise, between the two
RIDGE = 1e-2
FOLDS = 4  # parts of the batches that a ridge is chosen by
ENOUGH = 2  # rows per input below which a system is called too small


@dataclass(frozen=True)
class System:
    """The linear system of one layer group.

    Attributes:
        layers: module paths (or parameter names) of the layers that are solved together.
        rows: sampled positions.
        inputs: unknowns per output, the bias included.
    """

    layers: tuple[str, ...]
    rows: int
    inputs: int


def rows_for(inputs: int, most: int = MOST_ROWS) -> int:
    """Sampled positions that a system of so many inputs is solved from, where there are enough."""
    return min(most, max(LEAST_ROWS, ROWS_PER_INPUT * inputs))


def title(weight: str) -> str:
    """A layer's name for a person: its module path, or the parameter's own name."""
    return weight.removesuffix(".weight")


def shortage(systems: Sequence[System], samples: int) -> list[str]:
    """A remark if some systems have too few rows, with the number of inputs that would do."""
    small = [s for s in systems if s.rows < min(ENOUGH * s.inputs, MOST_ROWS)]
    if not small:
        return []
    worst = max(small, key=lambda s: s.inputs / s.rows)
    needed = math.ceil(ENOUGH * worst.inputs * samples / worst.rows)
    return [
        f"batches: {samples:,} calibration inputs are few for refit, about {needed:,} would do: "
        f"{len(small)} of {len(systems)} layer groups have fewer than {ENOUGH} rows per input "
        f"(worst {worst.layers[0]!r}: {worst.rows:,} rows, {worst.inputs:,} inputs)"
    ]


def folds_of(batches: int) -> list[range]:
    """The batches in order, in at most FOLDS parts."""
    count = min(FOLDS, batches)
    ends = [round(k * batches / count) for k in range(count + 1)]
    return [range(begin, end) for begin, end in zip(ends, ends[1:], strict=False)]


def blocks_of(layers: Sequence[Layer]) -> int:
    """Independent systems of a group: in each, every layer reads one of its groups."""
    return math.lcm(*(layer.groups for layer in layers))


def read(layers: Sequence[Layer], biased: Sequence[Layer], state: State) -> Tensor:
    """Current weights of a group as [blocks, p, r], the sum of its biases as the last row."""
    blocks = blocks_of(layers)
    parts = []
    for layer in layers:
        weight = state[layer.weight].double()
        weight = weight.T if layer.transposed else weight
        parts.append(weight.reshape(blocks, weight.shape[0] // blocks, -1).transpose(1, 2))
    if biased:
        biases = {name for layer in biased for name in (layer.bias, layer.own_bias) if name}
        total = torch.stack([state[name].double() for name in sorted(biases)]).sum(0)
        parts.append(total.reshape(blocks, 1, -1))
    return torch.cat(parts, 1)


def write(layers: Sequence[Layer], biased: Sequence[Layer], state: State, weights: Tensor) -> None:
    """Put weights [blocks, p, r] where :func:`read` found them, all bias into the first."""
    start = 0
    for layer in layers:
        old = state[layer.weight]
        count = (old[0] if not layer.transposed else old[:, 0]).numel()
        block = weights[:, start : start + count].transpose(1, 2)
        flat = block.reshape(-1, count)
        state.put(layer.weight, (flat.T if layer.transposed else flat).reshape(old.shape).to(old))
        start += count
    if biased:
        for layer in biased:
            for name in (layer.bias, layer.own_bias):
                if name and name != biased[0].bias:
                    state.put(name, torch.zeros_like(state[name]))
        assert biased[0].bias is not None
        state.put(biased[0].bias, weights[:, -1].flatten().to(state[biased[0].bias]))
