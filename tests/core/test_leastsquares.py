"""Closed-form ridge regression against its definition."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from hetmerge.layers import Layer
from hetmerge.leastsquares import RIDGES, Normal, held_out, inputs_of, pick, sample_positions
from hetmerge.ops.operand import columns_last

CONVOLUTIONS = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
CASES = [
    (1, 5, 4, (7,), (3,), (2,), (1,), (1,), 1),
    (2, 6, 4, (8, 7), (3, 3), (1, 1), (1, 1), (1, 1), 1),
    (2, 6, 4, (8, 8), (3, 2), (2, 1), (2, 0), (2, 1), 2),
    (2, 6, 6, (5, 5), (3, 3), (2, 2), (1, 1), (1, 1), 6),
    (2, 6, 4, (8, 8), (1, 1), (2, 2), (0, 0), (1, 1), 1),
    (3, 4, 2, (4, 5, 4), (3, 1, 2), (1, 2, 1), (1, 0, 1), (1, 1, 1), 2),
]


def layer(spatial: int, stride=(), padding=(), dilation=(), groups=1) -> Layer:  # noqa: ANN001
    return Layer(
        "n", "s", "w", None, None, "", "n", spatial, False, stride, padding, dilation, groups
    )


def rows_at(value: Tensor, positions: Tensor, spatial: int) -> Tensor:
    """Sampled positions as rows: by image, then position."""
    return pick(value, positions, spatial).transpose(1, 2).flatten(0, 1)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("share", [0.3, 1.0])
def test_patches_times_weights_are_the_convolution(case, share: float) -> None:  # noqa: ANN001
    rank, width_in, width_out, plane, kernel, stride, padding, dilation, groups = case
    x = torch.randn(3, width_in, *plane, dtype=torch.float64)[..., ::1]
    w = torch.randn(width_out, width_in // groups, *kernel, dtype=torch.float64)
    y = CONVOLUTIONS[rank](x, w, None, stride, padding, dilation, groups)
    count = int(torch.tensor(y.shape[2:]).prod())
    positions = torch.randperm(count)[: max(1, int(count * share))].sort().values
    rows = inputs_of(layer(rank, stride, padding, dilation, groups), x, w, positions, y.shape[2:])
    rows = torch.stack([operand.dense() for operand in rows], 1)
    weights = w.reshape(groups, width_out // groups, -1)
    found = torch.einsum("ngp,gop->ngo", rows, weights).reshape(len(rows), -1)
    torch.testing.assert_close(found, rows_at(y, positions, rank))


def test_strided_inputs_are_read_right() -> None:
    x = torch.randn(3, 8, 8, 6, dtype=torch.float64).permute(0, 3, 1, 2)  # channels last
    w = torch.randn(4, 6, 3, 3, dtype=torch.float64)
    y = F.conv2d(x, w, padding=1)
    spec = layer(2, (1, 1), (1, 1), (1, 1))
    rows = inputs_of(spec, x, w, torch.arange(64), y.shape[2:])
    torch.testing.assert_close(rows[0].dense() @ w.flatten(1).T, rows_at(y, torch.arange(64), 2))


def ridge(x: Tensor, t: Tensor, prior: Tensor, strength: float) -> Tensor:
    """Minimise by an augmented least-squares problem; the last column is a free bias."""
    n, p = x.shape
    scale = (x[:, :-1] ** 2).mean(0).mean()
    extra = torch.eye(p, dtype=x.dtype)[:-1] * (strength * scale * n).sqrt()
    return torch.linalg.lstsq(torch.cat([x, extra]), torch.cat([t, extra @ prior])).solution


@pytest.mark.parametrize("strength", [1e-3, 1e-2, 1.0])
def test_solution_is_the_ridge_minimum(strength: float) -> None:
    x = torch.randn(200, 7, dtype=torch.float64)
    x[:, -1] = 1
    t = torch.randn(200, 3, dtype=torch.float64)
    prior = torch.randn(7, 3, dtype=torch.float64)
    normal = Normal()
    for part in torch.arange(200).split(64):
        normal.add([[columns_last(x[part])]], t[part].T[None])
    found = normal.solve(prior[None], strength, bias=True)[0]
    torch.testing.assert_close(found, ridge(x, t, prior, strength), rtol=1e-6, atol=1e-8)


def test_nothing_to_learn_leaves_the_prior() -> None:
    x = torch.randn(50, 1, 6, dtype=torch.float64)
    x[:, :, 2] = 0  # a dead input must not move its weight
    prior = torch.randn(1, 6, 4, dtype=torch.float64)
    normal = Normal()
    normal.add([[columns_last(x[:, 0])]], torch.einsum("ngp,gpo->on", x, prior)[None])
    torch.testing.assert_close(normal.solve(prior, 1e-2, bias=False), prior, rtol=1e-12, atol=1e-12)


def test_held_out_error_is_that_of_solutions_without_the_part() -> None:
    """Brute force: solve without each part, predict its rows."""
    x = torch.randn(60, 7, dtype=torch.float64)
    x[:, -1] = 1
    t = torch.randn(60, 3, dtype=torch.float64)
    prior = torch.randn(7, 3, dtype=torch.float64)
    parts = torch.arange(60).split(17)
    folds = [Normal() for _ in parts]
    for fold, part in zip(folds, parts, strict=True):
        fold.add([[columns_last(x[part])]], t[part].T[None])
    kept = [fold.gram.clone() for fold in folds]
    wanted = []
    for strength in RIDGES:
        error = 0.0
        for part in parts:
            rest = torch.ones(60, dtype=torch.bool)
            rest[part] = False
            weights = ridge(x[rest], t[rest], prior, strength)
            error += float((x[part] @ weights - t[part]).square().sum())
        wanted.append(error)
    assert held_out(folds, prior[None], bias=True) == pytest.approx(wanted, rel=1e-9)
    assert all(torch.equal(a, fold.gram) for a, fold in zip(kept, folds, strict=True))


def test_ridge_below_rounding_is_raised() -> None:
    """Two equal inputs and no ridge to speak of: still a finite solution that fits."""
    x = torch.randn(40, 3, dtype=torch.float64)
    x = torch.cat([x, x[:, :1]], 1)
    normal = Normal()
    normal.add([[columns_last(x)]], (x[:, :1] * 2).T[None])
    found = normal.solve(torch.zeros(1, 4, 1, dtype=torch.float64), 1e-300, bias=False)
    torch.testing.assert_close(x @ found[0], x[:, :1] * 2, rtol=1e-5, atol=1e-5)


def test_explained_variance() -> None:
    x = torch.randn(500, 1, 5, dtype=torch.float64)
    x[:, :, -1] = 1
    exact = torch.randn(1, 5, 2, dtype=torch.float64)
    t = x[:, 0] @ exact[0]
    normal = Normal()
    normal.add([[columns_last(x[:, 0])]], t.T[None])
    assert normal.explained(exact) == pytest.approx(1, abs=1e-10)
    mean_only = torch.zeros_like(exact)
    mean_only[0, -1] = t.mean(0)
    assert normal.explained(mean_only) == pytest.approx(0, abs=1e-10)


def test_positions() -> None:
    generator = torch.Generator().manual_seed(0)
    grid = sample_positions(torch.Size([4, 3, 5, 5]), 2, 40, generator)
    assert len(grid) == 10
    assert len(set(grid.tolist())) == 10
    assert sample_positions(torch.Size([4, 3, 5, 5]), 2, 4000, generator).tolist() == list(
        range(25)
    )
    assert len(sample_positions(torch.Size([2, 6, 8]), 0, 5, generator)) == 5
