"""CKA of all layer pairs against one HSIC per pair, and against one product in plain torch."""

from functools import cache

import pytest
import torch

from hetmerge.ops import cka
from hetmerge.reference import similarity as reference

SAMPLES, FEATURES = 256, 2048
GATE = 1e-5  # absolute, against float64; sums of 2048 products in float32


@cache
def features(layers, dtype):
    """Two models whose layers share more and more of what the samples have in common."""
    rng = torch.Generator().manual_seed(0)
    common = torch.randn(SAMPLES, 64, generator=rng)
    return [
        [
            (
                common @ torch.randn(64, FEATURES, generator=rng) * k / layers
                + torch.randn(SAMPLES, FEATURES, generator=rng)
            ).to(dtype)
            for k in range(layers)
        ]
        for _ in range(2)
    ]


@cache
def exact(layers, dtype):
    return reference.cka(*([each] for each in features(layers, dtype)))


def per_pair(features_a, features_b):
    """As published with arXiv 2010.15327's estimator: Grams and three HSIC for every pair."""

    def gram(x):
        x = x.float()
        return (x @ x.T).fill_diagonal_(0.0)

    def hsic(k, m):
        n, ones = len(k), torch.ones(len(k), 1)
        result = torch.trace(k @ m)
        result += ((ones.T @ k @ ones @ ones.T @ m @ ones) / ((n - 1) * (n - 2))).item()
        result -= ((ones.T @ k @ m @ ones) * 2 / (n - 2)).item()
        return (result / (n * (n - 3))).item()

    table = torch.zeros(len(features_a), len(features_b), 3)
    for i, x in enumerate(features_a):
        k = gram(x)
        table[i, :, 0] = hsic(k, k)
        for j, y in enumerate(features_b):
            m = gram(y)
            table[i, j, 1], table[i, j, 2] = hsic(k, m), hsic(m, m)
    return table[:, :, 1] / (table[:, :, 0].sqrt() * table[:, :, 2].sqrt())


def one_product(features_a, features_b):
    """The same in float32 with every Gram matrix once and one product for all pairs."""

    def parts(layers):
        grams = torch.stack([x.float() @ x.float().T for x in layers])
        grams.diagonal(dim1=1, dim2=2).zero_()
        rows = grams.sum(2)
        return grams.flatten(1), rows, rows.sum(1)

    def hsic(product, rows, totals):
        n = SAMPLES
        return product + totals / ((n - 1) * (n - 2)) - 2 / (n - 2) * rows

    (f, r, t), (g, s, u) = parts(features_a), parts(features_b)
    cross = hsic(f @ g.T, r @ s.T, torch.outer(t, u))
    own = [hsic((x * x).sum(1), (y * y).sum(1), z * z) for x, y, z in ((f, r, t), (g, s, u))]
    return cross / (own[0].sqrt()[:, None] * own[1].sqrt())


IMPLEMENTATIONS = {"hetmerge": cka, "per-pair HSIC": per_pair, "one product in torch": one_product}


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize(
    ("layers", "dtype"),
    [(8, torch.float32), (16, torch.float32), (32, torch.float32), (32, torch.bfloat16)],
)
def test_cka(measure, layers, dtype, implementation):
    run, given = IMPLEMENTATIONS[implementation], features(layers, dtype)
    error = float((run(*given).double() - exact(layers, dtype)).abs().max())
    assert error < GATE
    grams, pairs = 2 * layers, layers**2
    measure(
        lambda: run(*given),
        f"cka {layers}x{layers} {str(dtype).removeprefix('torch.')}",
        implementation,
        rounds=1 if implementation == "per-pair HSIC" else 9,
        # One triangle of every Gram matrix in float32; the products of all pairs are 1 % of that.
        flops=grams * SAMPLES * (SAMPLES + 1) * FEATURES + 2 * pairs * SAMPLES**2,
        bytes=grams * SAMPLES * FEATURES * dtype.itemsize,
        error=error,
    )
