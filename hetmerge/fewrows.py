"""The ridge regression of a layer where there are fewer rows than inputs."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from hetmerge.leastsquares import solve_definite
from hetmerge.ops.operand import Operand, columns_last
from hetmerge.ops.products import cross, gram


class FewRows:
    """What :class:`hetmerge.leastsquares.Normal` solves, as a system of rows instead of inputs.

    With R = T - X W0 and X = the inputs, ``W = W0 + X' (X X' + rows * penalty)^-1 R``: the system
    has the size of the rows. A bias, which is not penalised, is the mean that is left once X and R
    are centred. Rows are kept, in the precision they came in.
    """

    def __init__(self) -> None:
        self._inputs: list[list[Tensor]] = []  # per batch, per block [rows, p]
        self._targets: list[Tensor] = []  # per batch [blocks, rows, r]

    @property
    def rows(self) -> int:
        """Rows so far."""
        return sum(target.shape[1] for target in self._targets)

    def add(self, inputs: Sequence[Sequence[Operand]], target: Tensor) -> None:
        """Add rows, as :meth:`hetmerge.leastsquares.Normal.add`."""
        self._inputs.append([torch.cat([x.dense() for x in block], 1) for block in inputs])
        blocks = target.unflatten(1, (len(inputs), -1))  # [images, blocks, r, positions]
        self._targets.append(blocks.permute(1, 0, 3, 2).flatten(1, 2))

    def solve(self, prior: Tensor, ridge: float, bias: bool) -> Tensor:
        """Weights [blocks, p, r], as :meth:`hetmerge.leastsquares.Normal.solve`."""
        targets = torch.cat(self._targets, 1).double()
        return torch.stack(
            [
                _solve(torch.cat([part[b] for part in self._inputs]), targets[b], w, ridge, bias)
                for b, w in enumerate(prior)
            ]
        )

    def explained(self, weights: Tensor) -> float:
        """Share of the targets' variance that these weights explain (1 is all of it)."""
        error, power, total = 0.0, 0.0, torch.zeros(())
        for inputs, target in zip(self._inputs, self._targets, strict=True):
            wanted = target.double()
            power += float(wanted.square().sum())
            total = total + wanted.sum(1)
            for x, w, t in zip(inputs, weights, wanted, strict=True):
                error += float((t - _product(x, w)).square().sum())
        variance = power - float(total.square().sum() / self.rows)
        return 1 - error / variance if variance > 0 else 1.0


def _solve(x: Tensor, target: Tensor, prior: Tensor, ridge: float, bias: bool) -> Tensor:
    """One block: x [rows, p], target [rows, r] float64, prior [p, r] float64."""
    missing = target - _product(x, prior)
    free = x[:, :-1] if bias else x
    rows, count = free.shape
    level = free.new_zeros(0)
    if bias:
        level, free = free.mean(0, dtype=torch.float64), free - free.mean(0)
        left = missing.mean(0)
        missing = missing - left
    squares = torch.linalg.vector_norm(x[:, :count], dtype=torch.float64).square()
    scale = squares / (rows * count) if count else x.new_ones((), dtype=torch.float64)
    penalty = (ridge * scale).clamp_min(torch.finfo(torch.float64).tiny).expand(1, rows)
    system = gram([columns_last(free.T)]) / rows if count else torch.zeros(rows, rows).double()
    inner = solve_definite(system[None], penalty, missing[None] / rows)[0]
    step = cross([columns_last(free)], [columns_last(inner.to(free))])
    if bias:
        step = torch.cat([step, (left - level @ step)[None]])
    return prior + step


def _product(x: Tensor, weights: Tensor) -> Tensor:
    """x [rows, p] times weights [p, r], float64."""
    return (x @ weights.to(x)).double()
