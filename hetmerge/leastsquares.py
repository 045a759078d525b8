"""Closed-form ridge regression of a layer on sampled positions of its inputs and targets."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from hetmerge.layers import Layer


@dataclass
class Normal:
    """Normal equations of one layer group, summed over batches in float64.

    Rows X [rows, blocks, p] and targets T [rows, blocks, r]; `blocks` is the number of groups of a
    grouped convolution and 1 otherwise.
    """

    rows: int = 0
    gram: Tensor = field(default_factory=lambda: torch.zeros(()))
    cross: Tensor = field(default_factory=lambda: torch.zeros(()))
    total: Tensor = field(default_factory=lambda: torch.zeros(()))
    power: float = 0.0

    def add(self, x: Tensor, t: Tensor) -> None:
        """Add rows x [rows, blocks, p] with targets t [rows, blocks, r]."""
        a, b = x.transpose(0, 1), t.transpose(0, 1)
        self.rows += x.shape[0]
        self.gram = self.gram + torch.stack([m.T @ m for m in a]).double()
        self.cross = self.cross + torch.stack([m.T @ n for m, n in zip(a, b, strict=True)]).double()
        self.total = self.total + t.sum(0, dtype=torch.float64)
        self.power += float(torch.linalg.vector_norm(t, dtype=torch.float64).square())

    def solve(self, prior: Tensor, ridge: float, bias: bool) -> Tensor:
        """Weights [blocks, p, r] nearest to `prior` [blocks, p, r] under the ridge.

        Minimises |X W - T|^2 / rows + ridge * d * |W - prior|^2 with d the mean diagonal of
        X'X / rows; a bias, the last of the p columns, is not penalised.
        """
        gram, cross = self.gram / self.rows, self.cross / self.rows
        diagonal = gram.diagonal(dim1=1, dim2=2)
        free = diagonal[:, :-1] if bias else diagonal
        scale = free.mean(1, keepdim=True) if free.shape[1] else diagonal.new_ones(len(gram), 1)
        penalty = (ridge * scale).clamp_min(torch.finfo(torch.float64).tiny).expand(diagonal.shape)
        penalty = penalty.clone()
        if bias:
            penalty[:, -1] = 1e-12
        step = torch.linalg.solve(gram + torch.diag_embed(penalty), cross - gram @ prior)
        solved: Tensor = prior + step
        return solved

    def explained(self, weights: Tensor) -> float:
        """Share of the targets' variance that these weights explain (1 is all of it)."""
        mean = self.total.square().sum() / self.rows
        variance = self.power - float(mean)
        fit = weights.transpose(1, 2) @ self.gram @ weights
        error = self.power - float(2 * (weights * self.cross).sum())
        error += float(fit.diagonal(dim1=1, dim2=2).sum())
        return 1 - error / variance if variance > 0 else 1.0


def sample_positions(
    shape: torch.Size, spatial: int, rows: int, generator: torch.Generator
) -> Tensor:
    """Random positions of a target value: of its spatial grid (shared by all images of the batch)
    where `spatial` > 0, else of its flattened leading dimensions.

    Args:
        shape: [batch, channels, *grid] or [..., features].
        rows: how many rows are wanted from this batch, at least one per image.
    """
    count = int(torch.tensor(shape[2:] if spatial else shape[:-1]).prod())
    wanted = max(1, rows // shape[0]) if spatial else max(1, rows)
    if wanted >= count:
        return torch.arange(count)
    return torch.randperm(count, generator=generator)[:wanted].sort().values


def pick(value: Tensor, positions: Tensor, spatial: int) -> Tensor:
    """Rows [rows, features] of a value at sampled positions."""
    positions = positions.to(value.device)
    if not spatial:
        return value.reshape(-1, value.shape[-1])[positions]
    grid = value.flatten(2)
    picked = grid if len(positions) == grid.shape[2] else grid[:, :, positions]
    return picked.transpose(1, 2).reshape(-1, value.shape[1])


def inputs_of(
    layer: Layer, value: Tensor, weight: Tensor, positions: Tensor, grid: torch.Size
) -> Tensor:
    """What a layer reads at sampled output positions: [rows, blocks, p], p in the weight's order.

    Args:
        value: the layer's input.
        weight: its weight, for the kernel size.
        positions: of the output grid `grid` (convolution) or of its rows (linear).
    """
    if not layer.spatial:
        return pick(value, positions, 0)[:, None]
    padded = F.pad(value, [p for size in reversed(layer.padding) for p in (size, size)])
    at = _unravel(positions.to(value.device), grid)
    index: tuple[Any, ...] = (slice(None), *at)
    found = _windows(padded, layer, weight.shape[2:], grid)[index]
    return found.reshape(value.shape[0] * len(positions), layer.groups, -1)


def _windows(padded: Tensor, layer: Layer, kernel: torch.Size, grid: torch.Size) -> Tensor:
    """What every output position sees, as a view: [batch, *grid, channels, *kernel]."""
    batch, channels, *plane = padded.stride()
    steps = [s * step for s, step in zip(plane, layer.stride, strict=True)]
    taps = [s * step for s, step in zip(plane, layer.dilation, strict=True)]
    shape = (padded.shape[0], *grid, padded.shape[1], *kernel)
    return padded.as_strided(shape, (batch, *steps, channels, *taps))


def _unravel(positions: Tensor, grid: torch.Size) -> list[Tensor]:
    found = []
    for size in reversed(grid):
        found.append(positions % size)
        positions = positions // size
    return found[::-1]
