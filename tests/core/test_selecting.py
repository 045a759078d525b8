"""Selections: what the features matter, which are kept, how the others are read."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from hetmerge.features import views_of
from hetmerge.importance import ByWeights, fisher
from hetmerge.network import Network
from hetmerge.ops.selection import Gram
from hetmerge.selecting import importance_of, selection, whole

CLOSE = 1e-9


class Net(nn.Module):
    """A convolution, a branch that reads it twice, and a head over flattened positions."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 4, 3, padding=1)
        self.left = nn.Conv2d(4, 3, 3, padding=1)
        self.right = nn.Conv2d(4, 3, 1)
        self.head = nn.Linear(3 * 25, 6)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        return self.head(torch.relu(self.left(x) + self.right(x)).flatten(1))


@pytest.fixture
def net() -> Net:
    torch.manual_seed(0)
    return Net().double()


def space_of(network: Network, tensor: str, dim: int) -> int:
    return network.graph.tensors[tensor][dim].space  # type: ignore[union-attr]


def images(count: int) -> Tensor:
    return torch.randn(count, 2, 5, 5, generator=torch.Generator().manual_seed(1)).double()


def test_weights_of_the_readers(net: Net) -> None:
    network = Network(net, ((images(4),), {}))
    stem = ByWeights(network, space_of(network, "stem.weight", 0))
    wanted = [
        torch.einsum("oikl,ojkl->ij", layer.weight, layer.weight) for layer in (net.left, net.right)
    ]
    assert len(stem) == 2
    assert stem.rows == 3 * 9 + 3
    for mine, theirs in zip(stem, wanted, strict=True):
        assert isinstance(mine, Gram) == (theirs is wanted[1])  # 3 rows, and 27, for 4 features
        torch.testing.assert_close(whole(mine), theirs.detach(), rtol=CLOSE, atol=CLOSE)
    (inner,) = ByWeights(network, space_of(network, "left.weight", 0))
    head = net.head.weight.detach().reshape(6, 3, 25)
    assert ByWeights(network, space_of(network, "left.weight", 0)).rows == 6 * 25
    torch.testing.assert_close(whole(inner), torch.einsum("oip,ojp->ij", head, head))


@pytest.mark.parametrize("counts", [(3,), (5,), (2, 2), (2, 4), (4, 2), (3, 9, 1)])
def test_few_rows_are_the_matrix_of_their_products(counts: tuple[int, ...]) -> None:
    """Places that are given by their rows, together fewer than the features or not."""
    rng = torch.Generator().manual_seed(len(counts))
    x = torch.randn(40, 9, generator=rng, dtype=torch.float64)
    rows = [torch.randn(n, 5, generator=rng, dtype=torch.float64) for n in counts]
    sizes, other = {0: 5, 1: 4}, [torch.eye(4, dtype=torch.float64)]
    few, squares = ({0: [kind(r) for r in rows], 1: other} for kind in (Gram, lambda r: r.T @ r))
    covariance = x.T @ x
    wanted = importance_of(covariance, sizes, squares, [0.3, 0.7])
    found = importance_of(covariance, sizes, few, [0.3, 0.7])
    torch.testing.assert_close(found, wanted, rtol=CLOSE, atol=CLOSE)
    maps = [selection(covariance, sizes, given, [0.3, 0.7], 5) for given in (few, squares)]
    for m in sizes:
        assert torch.equal(maps[0].labels[m], maps[1].labels[m])


def test_fisher_is_the_second_moment_of_gradients(net: Net) -> None:
    x = images(5)
    network = Network(net, ((x,), {}))
    views = views_of(network)[space_of(network, "stem.weight", 0)]
    found = fisher(network, [((x,), {})], 3, views)
    features = torch.relu(net.stem(x)).detach().requires_grad_(True)
    hidden = torch.relu(net.left(features) + net.right(features))
    outputs = net.head(hidden.flatten(1))
    noise = torch.randn(outputs.shape, generator=torch.Generator().manual_seed(3)).double()
    ((outputs - outputs.mean(-1, keepdim=True)) * noise).sum().backward()
    assert features.grad is not None
    g = features.grad.movedim(1, 0).flatten(1)
    (stem,) = found.values()  # both readers read the same value
    torch.testing.assert_close(stem, g @ g.T, rtol=CLOSE, atol=CLOSE)
    assert all(p.grad is None for p in network.model.parameters())


def test_what_is_not_kept_is_regressed_on_what_is() -> None:
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(500, 7, generator=rng, dtype=torch.float64)
    x[:, 5] = x[:, 0] - 2 * x[:, 1]
    x[:, 6] = 3 * x[:, 2]
    covariance = x.T @ x / len(x)
    importances = {m: [torch.eye(n, dtype=torch.float64)] for m, n in ((0, 4), (1, 3))}
    map_ = selection(covariance, {0: 4, 1: 3}, importances, [0.5, 0.5], 5)
    assert map_.width == 5
    kept = torch.cat([map_.labels[0], map_.labels[1]]) >= 0
    assert int(kept.sum()) == 5
    assert [len(map_.readoff[m]) for m in (0, 1)] == [
        int((map_.labels[m] < 0).sum()) for m in (0, 1)
    ]
    read = x[:, kept] @ torch.cat([map_.dense(0), map_.dense(1)]).T
    torch.testing.assert_close(read, x, rtol=CLOSE, atol=CLOSE)
    assert map_.merged == 2
    assert not map_.union


def test_features_of_a_silent_parent_are_not_kept() -> None:
    covariance = torch.eye(6, dtype=torch.float64)
    importances = {m: [torch.eye(3, dtype=torch.float64)] for m in (0, 1)}
    map_ = selection(covariance, {0: 3, 1: 3}, importances, [0.0, 1.0], 4)
    assert map_.width == 3
    assert map_.labels[0].tolist() == [-1, -1, -1]
    assert map_.labels[1].tolist() == [0, 1, 2]


def test_each_place_and_each_parent_count_the_same() -> None:
    """Scaling one parent's importances changes nothing."""
    rng = torch.Generator().manual_seed(2)
    x = torch.randn(300, 8, generator=rng, dtype=torch.float64)
    covariance = x.T @ x / len(x)
    q = torch.diag(torch.rand(4, generator=rng, dtype=torch.float64))
    maps = [
        selection(covariance, {0: 4, 1: 4}, {0: [q * scale, q], 1: [q]}, [0.5, 0.5], 4)
        for scale in (1.0, 1e6)
    ]
    assert torch.equal(maps[0].labels[0], maps[1].labels[0])
    assert torch.equal(maps[0].labels[1], maps[1].labels[1])


@pytest.mark.parametrize("heavy", [0, 1])
def test_a_parent_counts_by_its_weight(heavy: int) -> None:
    covariance = torch.eye(8, dtype=torch.float64)
    importances = {m: [torch.eye(4, dtype=torch.float64)] for m in (0, 1)}
    weights = [0.1, 0.1]
    weights[heavy] = 0.9
    map_ = selection(covariance, {0: 4, 1: 4}, importances, weights, 4)
    assert map_.labels[heavy].tolist() == [0, 1, 2, 3]
    assert map_.labels[1 - heavy].tolist() == [-1] * 4


def test_every_place_that_reads_counts() -> None:
    covariance = torch.eye(6, dtype=torch.float64)
    places = [torch.diag(torch.eye(4, dtype=torch.float64)[unit]) for unit in (1, 3)]
    importances = {0: places, 1: [torch.eye(2, dtype=torch.float64)]}
    map_ = selection(covariance, {0: 4, 1: 2}, importances, [0.5, 0.5], 2)
    assert map_.labels[0].tolist() == [-1, 0, -1, 1]
