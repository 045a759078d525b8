"""Closed-form ridge regression of a layer on sampled positions of its inputs and targets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from hetmerge.layers import Layer
from hetmerge.ops.operand import Operand, columns_last, patches, selected
from hetmerge.ops.products import cross, gram


@dataclass
class Normal:
    """Normal equations of one layer group, summed over batches in float64.

    Inputs X [rows, p] and targets T [rows, r] per block; blocks are the groups of a grouped
    convolution, one otherwise. gram [blocks, p, p], cross [blocks, p, r], total [blocks, r].
    """

    rows: int = 0
    gram: Tensor = field(default_factory=lambda: torch.zeros(()))
    cross: Tensor = field(default_factory=lambda: torch.zeros(()))
    total: Tensor = field(default_factory=lambda: torch.zeros(()))
    power: float = 0.0

    def add(self, inputs: Sequence[Sequence[Operand]], target: Tensor) -> None:
        """Add rows.

        Args:
            inputs: per block, the operands that lie side by side in X.
            target: [rows, blocks * r], block after block.
        """
        blocks = target.unflatten(1, (len(inputs), -1)).movedim(1, 0)
        self.rows += len(target)
        self.gram = self.gram + torch.stack([gram(x) for x in inputs])
        pairs = zip(inputs, blocks, strict=True)
        self.cross = self.cross + torch.stack([cross(x, [columns_last(t)]) for x, t in pairs])
        self.total = self.total + blocks.sum(1, dtype=torch.float64)
        self.power += float(torch.linalg.vector_norm(target, dtype=torch.float64).square())

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
) -> list[Operand]:
    """What a layer reads at sampled output positions: per block [rows, p], p in the weight's order.

    Args:
        value: the layer's input.
        weight: its weight, for the kernel size.
        positions: of the output grid `grid` (convolution) or of its rows (linear).
    """
    if not layer.spatial:
        return [selected(value.reshape(-1, value.shape[-1]), positions)]
    padded = F.pad(value, [p for size in reversed(layer.padding) for p in (size, size)])
    kernel = weight.shape[2:]
    return patches(padded, kernel, layer.stride, layer.dilation, positions, grid, layer.groups)
