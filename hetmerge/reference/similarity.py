"""Minibatch CKA pair by pair: the specification of ``ops.similarity``."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def hsic(
    first: Tensor,  # [n, n] float64 Gram matrix
    second: Tensor,  # [n, n] float64 Gram matrix
) -> Tensor:  # []
    """Unbiased HSIC, arXiv 2010.15327 eq 3."""
    n = len(first)
    k = first - torch.diag(first.diagonal())
    m = second - torch.diag(second.diagonal())
    product = k @ m
    value = product.trace() + k.sum() * m.sum() / ((n - 1) * (n - 2)) - 2 * product.sum() / (n - 2)
    return value / (n * (n - 3))


def hsic_tables(
    layers_a: Sequence[Tensor],  # per layer [n, ...]
    layers_b: Sequence[Tensor],
) -> tuple[Tensor, Tensor, Tensor]:  # [La, Lb], [La], [Lb] float64
    """HSIC of every pair of layers, and of every layer with itself."""
    grams_a, grams_b = [_gram(layer) for layer in layers_a], [_gram(layer) for layer in layers_b]
    cross = torch.stack([torch.stack([hsic(a, b) for b in grams_b]) for a in grams_a])
    self_a = torch.stack([hsic(a, a) for a in grams_a])
    self_b = torch.stack([hsic(b, b) for b in grams_b])
    return cross, self_a, self_b


def cka(
    batches_a: Sequence[Sequence[Tensor]],  # per batch, per layer [n, ...]
    batches_b: Sequence[Sequence[Tensor]],
) -> Tensor:  # [La, Lb] float64
    """Linear CKA: HSIC summed over the batches, then the ratio; 0 where a layer is constant."""
    tables = [hsic_tables(a, b) for a, b in zip(batches_a, batches_b, strict=True)]
    cross, self_a, self_b = (sum(table[1:], table[0]) for table in zip(*tables, strict=True))
    scale = self_a.clamp(min=0)[:, None] * self_b.clamp(min=0)[None, :]
    return torch.where(scale > 0, cross / scale.sqrt(), 0.0)


def _gram(layer: Tensor) -> Tensor:
    x = layer.double().flatten(1)
    x = x - x.mean(0)
    return x @ x.T
