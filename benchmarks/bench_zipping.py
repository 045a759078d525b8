"""Elastic zip: row-best cache and chains against full scans and plain complete linkage."""

from functools import cache
from pathlib import Path

import fastcluster
import numpy as np
import pytest
import torch
from scipy.cluster.hierarchy import linkage as scipy_linkage

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
    result = measure(
        lambda: zip_half(similarity), f"zip {total} {kind}", rounds=5, bytes=4 * total**2
    )
    assert len(set(result.labels.tolist())) == total // 2
    assert result.rescans < 4 * len(result.heights)


@pytest.mark.parametrize("implementation", ["hetmerge", "full scan"])
@pytest.mark.parametrize("total", [512, 1024, 2048])
def test_against_full_scan(measure, total, implementation):
    similarity = correlations(total, "linear")
    run = {
        "hetmerge": lambda: zip_half(similarity),
        "full scan": lambda: full_scan(similarity, 0.5),
    }
    if total < 2048:
        assert torch.equal(zip_half(similarity).labels, full_scan(similarity, 0.5))
    scan = implementation == "full scan"
    found = measure(
        run[implementation],
        f"zip {total} full scan",
        implementation,
        rounds=1 if scan else 9,
        warmup=0 if scan and total == 2048 else 1,
        bytes=4 * total**2,
    )
    if scan:
        assert torch.equal(found, zip_half(similarity).labels)


@pytest.mark.parametrize("implementation", ["hetmerge", "fastcluster", "scipy"])
@pytest.mark.parametrize("total", [2048, 8192])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_against_complete_linkage(measure, total, implementation, dtype):
    """The one setting other libraries know: alpha 1, no budgets, the whole tree."""
    similarity = correlations(total, "linear").to(getattr(torch, dtype))
    distance = 1 - similarity.numpy()[np.triu_indices(total, 1)].astype(np.float64)

    def tree() -> torch.Tensor:
        return zip_match_info(similarity, [total], 1, alpha=1.0).heights

    run = {
        "hetmerge": tree,
        "fastcluster": lambda: fastcluster.linkage(distance, "complete")[:, 2],
        "scipy": lambda: scipy_linkage(distance, "complete")[:, 2],
    }
    np.testing.assert_allclose(1 - tree().numpy(), run["fastcluster"](), rtol=1e-6, atol=1e-6)
    measure(run[implementation], f"linkage {total} {dtype}", implementation, rounds=3, warmup=0)


@pytest.mark.parametrize("kind", ["star", "linear"])
def test_worst_case_for_the_cache(measure, kind):
    similarity = star(2048) if kind == "star" else correlations(2048, "linear")
    result = measure(lambda: zip_half(similarity), f"zip 2048 {kind} worst case")
    assert result.algorithm == ("row-best+chain" if kind == "star" else "row-best")


def memory(key: str) -> int:
    """Bytes of this process: "VmRSS" now, "VmHWM" at most since the last reset."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(key))


def test_mlp_of_two_language_models_in_place(measure):
    """14336 + 8192 features: 2 GB of similarities, used as workspace."""
    total, sizes = 22528, [14336, 8192]
    work = correlations.__wrapped__(total, "linear")
    Path("/proc/self/clear_refs").write_text("5")  # the most memory so far is forgotten
    before = memory("VmRSS")
    result = measure(
        lambda: zip_match_info(work, sizes, overwrite=True),
        "zip 14336 + 8192 in place",
        rounds=1,
        warmup=0,
        bytes=4 * total**2,
    )
    assert len(set(result.labels.tolist())) == 14336
    extra = (memory("VmHWM") - before) / (4 * total**2)
    print(f"memory beyond the matrix: {extra:.4f} of it")
    assert extra < 0.1
