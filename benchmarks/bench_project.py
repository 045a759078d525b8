"""Projection by labels against dense merge and unmerge matrices."""

import pytest
import torch

from hetmerge.ops import project


@pytest.mark.parametrize("implementation", ["hetmerge", "dense matrices", "copy"])
@pytest.mark.parametrize("width", [512, 1024])
def test_project(measure, width, implementation):
    rng = torch.Generator().manual_seed(0)
    weights = [torch.randn(width, width, generator=rng) for _ in range(2)]
    rows = [torch.randint(width, (width,), generator=rng) for _ in weights]
    cols = [torch.randint(width, (width,), generator=rng) for _ in weights]
    units = [torch.eye(width)[labels] for labels in (*rows, *cols)]
    mass = (units[0].sum(0) + units[1].sum(0)).clamp(min=1)
    merges = [(unit / mass).T.contiguous() for unit in units[:2]]

    def ours():
        return project(weights, rows, cols, width, width)

    def dense():
        return sum(m @ w @ u for m, w, u in zip(merges, weights, units[2:], strict=True))

    def copy():  # the roof: the same bytes, read and written once
        return [weight.clone() for weight in weights]

    torch.testing.assert_close(ours(), dense(), rtol=1e-4, atol=1e-4)
    run = {"hetmerge": ours, "dense matrices": dense, "copy": copy}
    measure(run[implementation], f"project {width}", bytes=4 * 3 * width**2)
