"""Projection by dense merge and unmerge matrices: the specification of ``ops.project``."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def project(
    weights: Sequence[Tensor | None],  # per parent [R_m, C_m, ...] or [R_m]
    row_labels: Sequence[Tensor],  # per parent [R_m]
    col_labels: Sequence[Tensor] | None,  # per parent [C_m]; None for vectors
    rows: int,
    cols: int,
    model_weights: Sequence[float],
) -> Tensor:  # [rows, cols, ...] or [rows], float64
    """sum_m M_m W_m U_m (arXiv 2501.00061): M averages a cluster's rows, U sums its columns."""
    units = [torch.eye(rows, dtype=torch.float64)[labels].T for labels in row_labels]  # [rows, R_m]
    mass = torch.zeros(rows, dtype=torch.float64)
    for share, unit in zip(model_weights, units, strict=True):
        mass += share * unit.sum(1)
    result = torch.zeros((), dtype=torch.float64)
    for m, weight in enumerate(weights):
        if weight is None:
            continue
        merge = torch.nan_to_num(model_weights[m] * units[m] / mass[:, None], nan=0.0)
        if col_labels is None:
            result = result + merge @ weight.double()
        else:
            unmerge = torch.eye(cols, dtype=torch.float64)[col_labels[m]]  # [C_m, cols]
            result = result + torch.einsum("ru,uc...,cd->rd...", merge, weight.double(), unmerge)
    return result
