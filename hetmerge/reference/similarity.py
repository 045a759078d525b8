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


def cka(
    batches_a: Sequence[Sequence[Tensor]],  # per batch, per layer [n, ...]
    batches_b: Sequence[Sequence[Tensor]],
) -> Tensor:  # [La, Lb] float64
    """Linear CKA: HSIC averaged over the batches, then the ratio; 0 where a layer is constant."""
    grams_a = [[_gram(layer) for layer in batch] for batch in batches_a]
    grams_b = [[_gram(layer) for layer in batch] for batch in batches_b]
    result = torch.zeros(len(grams_a[0]), len(grams_b[0]), dtype=torch.float64)
    for i in range(len(result)):
        for j in range(len(result[0])):
            pairs = [(a[i], b[j]) for a, b in zip(grams_a, grams_b, strict=True)]
            cross = sum(float(hsic(a, b)) for a, b in pairs)
            self_a = sum(float(hsic(a, a)) for a, _ in pairs)
            self_b = sum(float(hsic(b, b)) for _, b in pairs)
            if self_a > 0 and self_b > 0:
                result[i, j] = cross / (self_a * self_b) ** 0.5
    return result


def _gram(layer: Tensor) -> Tensor:
    x = layer.double().flatten(1)
    x = x - x.mean(0)
    return x @ x.T
