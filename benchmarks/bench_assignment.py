"""Linear sum assignment against SciPy and the fastest exact solver of lapx."""

from concurrent.futures import ThreadPoolExecutor
from functools import cache

import lap
import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment as scipy_assignment

from hetmerge.ops import linear_sum_assignment


@cache
def correlations(batch: int, n: int, kind: str) -> np.ndarray:
    """Features of two models that share latent directions; "related": one nearly is the other."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((batch, 2 * n, n // 2), dtype=np.float32)
    x = x @ rng.standard_normal((n // 2, 1000), dtype=np.float32)
    if kind == "related":
        x[:, n:] = 0.7 * x[:, rng.permutation(n)] + 0.7 * x[:, n:]
    x -= x.mean(2, keepdims=True)
    x /= np.linalg.norm(x, axis=2, keepdims=True)
    return np.ascontiguousarray(x[:, :n] @ x[:, n:].transpose(0, 2, 1))


def total(score: np.ndarray, cols: np.ndarray) -> np.ndarray:
    return np.take_along_axis(score.astype(np.float64), cols[..., None], 2).sum((1, 2))


def scipy_one(score):
    return scipy_assignment(score, maximize=True)[1]


def lapx(score):
    return lap.lapjv(np.negative(score, dtype=np.float64))[1]


@pytest.mark.parametrize("implementation", ["hetmerge", "scipy", "lapx"])
@pytest.mark.parametrize("kind", ["independent", "related"])
@pytest.mark.parametrize("n", [1024, 4096])
def test_one(measure, n, kind, implementation):
    score = correlations(1, n, kind)
    run = {
        "hetmerge": lambda: linear_sum_assignment(torch.from_numpy(score))[1].numpy(),
        "scipy": lambda: scipy_one(score[0])[None],
        "lapx": lambda: lapx(score[0])[None],
    }
    np.testing.assert_allclose(total(score, run[implementation]()), total(score, run["scipy"]()))
    measure(run[implementation], f"assignment {n}² {kind}", implementation, 3, 0, bytes=4 * n**2)


@pytest.mark.parametrize("implementation", ["hetmerge", "scipy, threads", "lapx, threads"])
@pytest.mark.parametrize(("batch", "n"), [(256, 64), (1024, 128)])
def test_many(measure, batch, n, implementation):
    score = correlations(batch, n, "independent")
    pool = ThreadPoolExecutor(torch.get_num_threads())
    run = {
        "hetmerge": lambda: linear_sum_assignment(torch.from_numpy(score))[1].numpy(),
        "scipy, threads": lambda: np.stack(list(pool.map(scipy_one, score))),
        "lapx, threads": lambda: np.stack(list(pool.map(lapx, score))),
    }
    ours = total(score, run["hetmerge"]())
    np.testing.assert_allclose(ours, total(score, run[implementation]()), rtol=1e-12)
    measure(run[implementation], f"assignment {batch} x {n}²", implementation, bytes=4 * score.size)
