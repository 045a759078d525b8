"""Greedy choice of features by what they leave unexplained: the specification of
``ops.selection``."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def residual(covariance: Tensor, chosen: Sequence[int]) -> Tensor:  # [O, O] float64
    """What the chosen features leave of a covariance: C - C_:S C_SS^-1 C_S:."""
    if not chosen:
        return covariance
    at = torch.tensor(chosen)
    known = covariance[at]
    left: Tensor = covariance - known.T @ torch.linalg.lstsq(known[:, at], known).solution
    return left


def gains(
    covariances: Sequence[Tensor],  # per place, [O, O] float64
    importances: Sequence[Tensor],  # per place, [O, O] float64
    chosen: Sequence[int],
    floor: float,
) -> Tensor:  # [O] float64
    """By how much each feature would lower sum tr(Q E); 0 for features already explained."""
    total = torch.zeros(len(covariances[0]), dtype=torch.float64)
    for covariance, importance in zip(covariances, importances, strict=True):
        e = residual(covariance, chosen)
        left = e.diagonal()
        open_ = left > floor * covariance.diagonal()
        gain = (e @ importance @ e).diagonal() / torch.where(open_, left, 1.0)
        total += torch.where(open_, gain, 0.0)
    total[list(chosen)] = 0.0
    return total
