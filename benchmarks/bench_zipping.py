"""Elastic zip: row-best cache and chains against full scans and plain complete linkage."""

from functools import cache

import fastcluster
import numpy as np
import pytest
import torch

from hetmerge.ops import zip_match_info

SIZES = [2048, 4096, 8192]


@cache
def correlations(total: int, kind: str) -> torch.Tensor:
    """Two parents that share half of their latent directions; "relu": 10 % dead features."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((total, total // 4), dtype=np.float32)
    x = x @ rng.standard_normal((total // 4, 1500), dtype=np.float32)
    if kind == "relu":
        x = np.maximum(x, 0)
        x[rng.random(total) < 0.1] = 0
    x -= x.mean(1, keepdims=True)
    std = np.maximum(x.std(1), 1e-7)
    corr = x @ x.T / (x.shape[1] * np.outer(std, std))
    return torch.from_numpy(np.triu(corr, 1) + np.triu(corr, 1).T)


@cache
def star(total: int) -> torch.Tensor:
    """Every row has its best in the column merged away next: the cache's worst case."""
    columns = np.broadcast_to(np.linspace(0.1, 1.0, total, dtype=np.float32), (total, total))
    return torch.from_numpy(np.triu(columns, 1) + np.triu(columns, 1).T)


def full_scan(similarity: torch.Tensor, alpha: float) -> torch.Tensor:
    """The published loop on two equal parents: one argmax over the whole matrix per merge."""
    total = len(similarity)
    half = total // 2
    scores, cluster = similarity.clone().fill_diagonal_(-torch.inf), torch.arange(total)
    left = [half // 2, half // 2]
    for _ in range(half):
        i, j = divmod(int(scores.argmax()), total)
        scores[i] = scores[:, i] = alpha * torch.minimum(scores[i], scores[j])
        scores[j] = scores[:, j] = -torch.inf
        cluster[cluster == j] = i
        if (i < half) == (j < half):
            left[i >= half] -= 1
            if left[i >= half] == 0:
                model = slice(0, half) if i < half else slice(half, total)
                scores[model, model] = -torch.inf
    return cluster.unique(return_inverse=True)[1]


def zip_half(similarity: torch.Tensor, **options):
    half = len(similarity) // 2
    return zip_match_info(similarity, [half, half], half, **options)


@pytest.mark.parametrize("kind", ["linear", "relu"])
@pytest.mark.parametrize("total", SIZES)
def test_zip(measure, total, kind):
    similarity = correlations(total, kind)
    result = measure(lambda: zip_half(similarity), f"zip {total} {kind}", bytes=4 * total**2)
    assert len(set(result.labels.tolist())) == total // 2
    assert result.rescans < 4 * len(result.heights)


@pytest.mark.parametrize("implementation", ["hetmerge", "full scan"])
@pytest.mark.parametrize("total", [512, 1024])
def test_against_full_scan(measure, total, implementation):
    similarity = correlations(total, "linear")
    assert torch.equal(zip_half(similarity).labels, full_scan(similarity, 0.5))
    run = {
        "hetmerge": lambda: zip_half(similarity),
        "full scan": lambda: full_scan(similarity, 0.5),
    }
    measure(run[implementation], f"full scan {total}", rounds=1 if "scan" in implementation else 9)


@pytest.mark.parametrize("implementation", ["hetmerge", "fastcluster"])
@pytest.mark.parametrize("total", [2048])
def test_against_complete_linkage(measure, total, implementation):
    """The one setting other libraries know: alpha 1, no budgets, the whole tree, float64."""
    similarity = correlations(total, "linear").double()
    distance = 1 - similarity.numpy()[np.triu_indices(total, 1)]

    def tree() -> torch.Tensor:
        return zip_match_info(similarity, [total], 1, alpha=1.0).heights

    def linkage() -> np.ndarray:
        return fastcluster.linkage(distance, "complete")[:, 2]

    np.testing.assert_allclose(1 - tree().numpy(), linkage(), rtol=1e-12, atol=1e-12)
    measure({"hetmerge": tree, "fastcluster": linkage}[implementation], f"linkage {total}")


@pytest.mark.parametrize("kind", ["star", "linear"])
def test_worst_case_for_the_cache(measure, kind):
    similarity = star(2048) if kind == "star" else correlations(2048, "linear")
    result = measure(lambda: zip_half(similarity), "star 2048")
    assert result.algorithm == ("row-best+chain" if kind == "star" else "row-best")
