"""Moments of concatenated features in float64: the specification of ``ops.moments``."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def gather(
    features: Sequence[Tensor],  # per parent, features along ``dim``
    dim: int,
    mask: Tensor | None = None,  # bool, broadcastable to the other dimensions
) -> Tensor:  # [samples, O] float64
    rows = [x.double().movedim(dim, -1) for x in features]
    joint = torch.cat(rows, -1)
    if mask is None:
        return joint.flatten(0, -2)
    return joint[mask.expand(joint.shape[:-1])]


def covariance(samples: Tensor) -> Tensor:  # [samples, O] float64 -> [O, O]
    centred = samples - samples.mean(0)
    return centred.T @ centred / len(samples)


def correlation(samples: Tensor) -> Tensor:  # [samples, O] float64 -> [O, O]
    cov = covariance(samples)
    std = cov.diagonal().sqrt()
    return (cov / torch.outer(std, std).clamp(min=1e-7)).clamp(-1, 1)
