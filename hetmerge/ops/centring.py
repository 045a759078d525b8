"""Sums about a pivot in float64, and the pivot's moves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hetmerge.ops.panels import Block, add_outer

FAR = 10.0  # standard deviations between mean and pivot at which the pivot moves
CLOSE = 4.0  # ... up to which bfloat16 features need no pivot
ROUNDING = 1e-13  # of sums of squares in float64, relative: smaller variances are a constant's


@dataclass(frozen=True)
class State:
    """Sums over all batches so far, changed in place.

    Attributes:
        count: [] int64 on the CPU.
        rows: [3, O] float64: the pivot (NaN before the first batch), the sum of x - pivot, and the
            sum of its square.
    """

    count: Tensor
    rows: Tensor

    @property
    def pivot(self) -> Tensor:
        return self.rows[0]

    @property
    def sums(self) -> Tensor:
        """[2, O]"""
        return self.rows[1:]

    def unset(self) -> bool:
        return int(self.count) == 0 and bool(self.pivot.isnan().any())


@dataclass(frozen=True)
class Sums:
    """Sums over one batch.

    Attributes:
        count: samples.
        finite: [parents] bool: no counted value is NaN or infinite; None: the backend's judge
            reads that off the values.
        shift: [O] float64.
        values: [2, O] float64: the sums of x - shift and of its square.
    """

    count: int
    finite: Tensor | None
    shift: Tensor
    values: Tensor


def variance_of(count: int, sums: Tensor) -> Tensor:
    """[O] population variance, exactly 0 where it is lost in the rounding of the squares."""
    return mean_and_variance(count, sums)[1]


def mean_and_variance(count: int, sums: Tensor) -> tuple[Tensor, Tensor]:
    """[O] of x - p; the variance as in :func:`variance_of`."""
    mean, power = sums / count
    found = power - mean.square()
    return mean, torch.where(found > ROUNDING * power, found, 0.0)


def shift_sums(count: int, sums: Tensor, shift: Tensor) -> None:
    """Sums of x - p and of its square, in place, become those of x - p + shift.

    What was constant remains so: the rounding of squares about a distant pivot is left behind.
    """
    dead = variance_of(count, sums) == 0
    sums[1] += 2 * shift * (sums[0] + shift * (count / 2))
    sums[0] += shift * count
    sums[1] = torch.where(dead, sums[0].square() / count, sums[1])


def shift_products(kept: Sequence[Block], count: int, total: Tensor, shift: Tensor) -> None:
    """Products of x - p, in place, become those of x - p + shift: a correction of rank 2.

    ``total`` is the sum of x - p before; the square of the shift is split evenly on both sides.
    """
    add_outer(kept, shift, total + shift * (count / 2))


def spread(state: State, found: Sums) -> tuple[Tensor, Tensor]:
    """[O] mean and variance of x - found.shift over all samples, those of the batch included."""
    together = int(state.count) + found.count
    return mean_and_variance(together, state.sums + found.values)


def is_far(mean: Tensor, variance: Tensor) -> Tensor:
    """[O] whether a pivot from which x deviates by ``mean`` should move."""
    return mean.square() > FAR**2 * variance


def judge(state: State, found: Sums) -> tuple[list[bool], bool]:
    """What the host has to know before it adds a batch: which parents are finite; a pivot is far.

    The only wait for the device.
    """
    assert found.finite is not None
    far = is_far(*spread(state, found)).any()
    *finite, moves = torch.cat([found.finite, far[None]]).tolist()
    return finite, moves


def best_pivot(mean: Tensor, variance: Tensor, dtypes: set[torch.dtype]) -> Tensor:
    """[O] float64: the mean as the arithmetic of these features can hold it."""
    if dtypes == {torch.bfloat16}:
        near = mean.square() <= CLOSE**2 * variance
        return torch.where(near, 0.0, mean.bfloat16().double())
    return mean if torch.float64 in dtypes else mean.float().double()
