"""What merging loses, against least squares on the samples themselves."""

import pytest
import torch
from torch import Tensor

from hetmerge.labels import permute_labels
from hetmerge.losses import shares_lost
from hetmerge.ops.selection import select
from hetmerge.ops.zipping import zip_match
from hetmerge.partition import Partition, union

# Share of all weighted variance: shares_lost() adds 1e-6 to correlation matrices whose smallest
# eigenvalue is above 0.05 here.
RIDGE = 2e-5
SIZES = [5, 4]


@pytest.fixture
def samples() -> Tensor:
    """[400, 9] correlated features."""
    rng = torch.Generator().manual_seed(0)
    mix = torch.randn(6, 9, generator=rng, dtype=torch.float64)
    x = torch.randn(400, 6, generator=rng, dtype=torch.float64) @ mix
    x += 0.3 * torch.randn(400, 9, generator=rng, dtype=torch.float64)
    return x - x.mean(0)


@pytest.fixture
def importance() -> Tensor:
    rng = torch.Generator().manual_seed(1)
    a, b = (torch.randn(n, n, generator=rng, dtype=torch.float64) for n in SIZES)
    return torch.block_diag(a @ a.T, b @ b.T)


def direct(x: Tensor, importance: Tensor, labels: Tensor, weights: list[float]) -> float:
    """Regress the features on the averages of their clusters; the weighted residual."""
    weight = torch.tensor(weights).repeat_interleave(torch.tensor(SIZES)).double()
    columns = [
        (x[:, labels == c] * weight[labels == c]).sum(1) / weight[labels == c].sum()
        for c in range(int(labels.max()) + 1)
    ]
    merged = torch.stack(columns, 1)
    residual = x - merged @ torch.linalg.lstsq(merged, x).solution
    return float(((residual @ importance) * residual).sum() / len(x))


@pytest.mark.parametrize("width", [1, 3, 5, 7, 8])
def test_loss_is_what_least_squares_leaves(width: int, samples: Tensor, importance: Tensor) -> None:
    covariance = samples.T @ samples / len(samples)
    weights = [0.3, 0.7]
    labels = zip_match(torch.corrcoef(samples.T), SIZES, width=width)
    partition = Partition(width, dict(enumerate(labels.split(SIZES))))
    (found,) = shares_lost(covariance, importance, [partition], weights)
    wanted, whole = direct(samples, importance, labels, weights), (importance * covariance).sum()
    assert wanted / float(whole) > 50 * RIDGE
    assert float(found) == pytest.approx(wanted / float(whole), abs=RIDGE)


def test_selection_loses_what_its_own_curve_says(samples: Tensor, importance: Tensor) -> None:
    covariance = samples.T @ samples / len(samples)
    ranking = select(covariance, importance, 9)
    partitions = []
    for width in range(1, 9):
        labels = torch.full((9,), -1)
        labels[ranking.features[:width]] = torch.arange(width)
        partitions.append(Partition(width, dict(enumerate(labels.split(SIZES)))))
    found = shares_lost(covariance, importance, partitions, [0.5, 0.5])
    torch.testing.assert_close(found, ranking.loss[1:9], rtol=0, atol=RIDGE)


def test_union_and_copies_lose_nothing(samples: Tensor, importance: Tensor) -> None:
    x = samples.clone()
    x[:, 5:] = 3 * x[:, :4]
    covariance = x.T @ x / len(x)
    labels = permute_labels(torch.corrcoef(x.T), SIZES, 5)
    twice = Partition(5, dict(enumerate(labels.split(SIZES))))
    found = shares_lost(covariance, importance, [union({0: 5, 1: 4}), twice], [0.5, 0.5])
    assert float(found[0]) == 0.0
    assert float(found[1]) < RIDGE
