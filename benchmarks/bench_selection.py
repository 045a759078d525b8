"""Greedy selection in blocks against the same steps on whole matrices."""

import pytest
import torch

from hetmerge.ops import select
from hetmerge.ops.selection import FLOORS


def problem(total):
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(4096, total // 4, generator=rng) @ torch.randn(total // 4, total, generator=rng)
    x += 0.3 * torch.randn(x.shape, generator=rng)
    w = torch.randn(total // 2, total, generator=rng)
    return (x.T @ x / len(x)).double(), (w.T @ w).double()


def plain(covariance, importance, width):
    """E and E Q E downdated as a whole with every choice."""
    e, f = covariance.clone(), covariance @ importance @ covariance
    floor, chosen = FLOORS[0] * covariance.diagonal(), []
    for _ in range(width):
        gain = f.diagonal() / e.diagonal()
        gain[e.diagonal() <= floor] = 0
        u = int(gain.argmax())
        chosen.append(u)
        v, w, s = e[:, u] / e[u, u].sqrt(), f[:, u] / e[u, u].sqrt(), f[u, u] / e[u, u]
        cross = w - s * v / 2
        e -= torch.outer(v, v)
        f -= torch.outer(v, cross) + torch.outer(cross, v)
    return chosen


@pytest.mark.parametrize("implementation", ["hetmerge", "whole matrices"])
@pytest.mark.parametrize("total", [512, 1024])
def test_select(measure, total, implementation):
    covariance, importance = problem(total)
    width = total // 2
    if total == 512:
        assert select(covariance, importance, width).features.tolist() == plain(
            covariance, importance, width
        )
    run = {
        "hetmerge": lambda: select(covariance, importance, width),
        "whole matrices": lambda: plain(covariance, importance, width),
    }
    flops = 3 * total**3 + 3 * width * total**2
    measure(
        run[implementation],
        f"select {width} of {total}",
        implementation,
        rounds=1,
        flops=flops,
        dtype="float64",
    )


def test_select_wide(measure):
    covariance, importance = problem(8192)
    found = measure(
        lambda: select(covariance, importance, 4096),
        "select 4096 of 8192",
        rounds=1,
        warmup=0,
        flops=3 * 8192**3 + 3 * 4096 * 8192**2,
        dtype="float64",
    )
    assert float(found.loss[-1]) < 0.1
