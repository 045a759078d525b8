"""Closed-form ridge regression of a layer on sampled positions of its inputs and targets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from hetmerge.layers import Layer
from hetmerge.ops.operand import Operand, columns_last, patches, selected
from hetmerge.ops.products import cross, gram

RIDGES = (1e-4, 1e-3, 1e-2, 1e-1)  # what "auto" chooses from


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
            target: [images, blocks * r, positions], block after block; rows by image, then
                position.
        """
        blocks = target.unflatten(1, (len(inputs), -1)).movedim(1, 0)
        pairs = zip(inputs, blocks, strict=True)
        self += Normal(
            target.shape[0] * target.shape[2],
            torch.stack([gram(x) for x in inputs]),
            torch.stack([cross(x, [columns_last(t.movedim(1, 2))]) for x, t in pairs]),
            blocks.sum((1, 3), dtype=torch.float64),
            float(torch.linalg.vector_norm(target, dtype=torch.float64).square()),
        )

    def __iadd__(self, other: Normal) -> Normal:
        if not self.rows:
            self.gram, self.cross, self.total = other.gram, other.cross, other.total
        else:
            self.gram.add_(other.gram)
            self.cross.add_(other.cross)
            self.total.add_(other.total)
        self.rows += other.rows
        self.power += other.power
        return self

    @staticmethod
    def sum(parts: Sequence[Normal]) -> Normal:
        """All rows of the parts, which stay as they are."""
        first, *rest = parts
        if not rest:
            return first
        total = replace(first, gram=first.gram.clone(), cross=first.cross.clone())
        total.total = first.total.clone()
        for part in rest:
            total += part
        return total

    def __sub__(self, other: Normal) -> Normal:
        return Normal(
            self.rows - other.rows,
            self.gram - other.gram,
            self.cross - other.cross,
            self.total - other.total,
            self.power - other.power,
        )

    def solve(self, prior: Tensor, ridge: float, bias: bool) -> Tensor:
        """Weights [blocks, p, r] nearest to `prior` [blocks, p, r] under the ridge.

        Minimises |X W - T|^2 / rows + ridge * d * |W - prior|^2 with d the mean diagonal of
        X'X / rows; a bias, the last of the p columns, is not penalised.
        """
        (step,) = self.steps(prior, [ridge], bias)
        return prior + step

    def steps(self, prior: Tensor, ridges: Sequence[float], bias: bool) -> list[Tensor]:
        """W - prior of :meth:`solve` for several ridges."""
        system = self.gram / self.rows
        missing = self.cross / self.rows - system @ prior
        diagonal = system.diagonal(dim1=1, dim2=2)
        plain = diagonal.clone()
        free = plain[:, :-1] if bias else plain
        scale = free.mean(1, keepdim=True) if free.shape[1] else plain.new_ones(len(plain), 1)
        found = []
        for ridge in ridges:
            diagonal.copy_(plain)
            penalty = (ridge * scale).clamp_min(torch.finfo(torch.float64).tiny)
            penalty = penalty.expand(plain.shape).clone()
            if bias:
                penalty[:, -1] = 1e-12
            found.append(solve_definite(system, penalty, missing))
        return found

    def explained(self, weights: Tensor) -> float:
        """Share of the targets' variance that these weights explain (1 is all of it)."""
        variance = self.power - float(self.total.square().sum() / self.rows)
        return 1 - self.error(weights) / variance if variance > 0 else 1.0

    def error(self, weights: Tensor) -> float:
        """|X W - T|^2 of weights [blocks, p, r]."""
        return self.power + float((weights * (self.gram @ weights - 2 * self.cross)).sum())


def solve_definite(system: Tensor, penalty: Tensor, right: Tensor) -> Tensor:
    """(system + penalty)^-1 right [blocks, p, r]; `system` is used as scratch space.

    A penalty below the rounding of the products can leave the matrix indefinite: it is then raised
    tenfold until it does not.
    """
    diagonal = system.diagonal(dim1=1, dim2=2)
    plain = diagonal.clone()
    while True:
        diagonal.copy_(plain + penalty)
        factor, failed = torch.linalg.cholesky_ex(system)
        if not bool(failed.any()):
            return torch.cholesky_solve(right, factor)
        penalty = penalty * 10


def held_out(folds: Sequence[Normal], prior: Tensor, bias: bool) -> list[float]:
    """Per ridge of RIDGES, the squared error of solutions on the part of the rows they did not see.

    All of it follows from sums: the rest of fold k has normal equations total - fold_k, and its
    solution W errs by  power_k - 2 <W, cross_k> + <W, gram_k W>  on fold k.

    Args:
        folds: normal equations of disjoint sets of batches, two or more.
        prior: [blocks, p, r].
        bias: the last of the p columns is a bias.
    """
    total, errors = Normal.sum(folds), [0.0] * len(RIDGES)
    for fold in folds:
        for i, step in enumerate((total - fold).steps(prior, RIDGES, bias)):
            errors[i] += fold.error(prior + step)
    return errors


def generator_of(seed: int, number: int) -> torch.Generator:
    """Of each system its own, so that what is drawn does not depend on what was solved before."""
    return torch.Generator().manual_seed(seed * 1_000_003 + number)


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
    """A value at sampled positions, [images, features, positions]; one image for a linear map."""
    positions = positions.to(value.device)
    grid = value.flatten(2) if spatial else value.reshape(-1, value.shape[-1]).T[None]
    return grid if len(positions) == grid.shape[2] else grid[:, :, positions]


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
