"""Principal directions of all parents: what is kept, how it is read and written."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from hetmerge.losses import shares_lost
from hetmerge.principal import directions

SIZES = {0: 5, 1: 3}


def features(rows: int = 500, rank: int = 8) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(rows, rank, generator=generator, dtype=torch.float64)
    return x @ torch.randn(rank, 8, generator=generator, dtype=torch.float64)


def of(x: Tensor) -> Tensor:
    return x.T @ x / len(x)


def through(x: Tensor, width: int, weights: list[float], loud: dict[int, float]) -> list[Tensor]:
    """The merged features [rows, width], and per parent its own as they are read from them."""
    partition = directions(of(x), SIZES, {}, weights, loud).partition(width)
    parts = x.split(list(SIZES.values()), 1)
    merged = sum(part @ partition.writes[m] for m, part in zip(SIZES, parts, strict=True))
    return [merged, *(merged @ partition.readoff[m].T for m in SIZES)]


@pytest.mark.parametrize("width", [1, 4, 7, 8])
def test_no_other_subspace_keeps_more(width: int) -> None:
    x = features()
    _, *read = through(x, width, [0.5, 0.5], {})
    lost = float((torch.cat(read, 1) - x).square().sum() / len(x))
    wanted = torch.linalg.eigvalsh(of(x))[: 8 - width].sum()
    assert lost == pytest.approx(float(wanted), abs=1e-9)


def test_what_matters_comes_first() -> None:
    """A quiet direction that the outputs depend on goes before loud ones that they ignore."""
    x = torch.randn(400, 8, generator=torch.Generator().manual_seed(1)).double()
    x = x @ torch.linalg.inv(torch.linalg.cholesky(of(x))).T  # white
    x = x * torch.tensor([3.0, 2.5, 1.0, 0.5, 0.4, 2.0, 0.9, 0.8])
    matters = {0: [torch.diag(torch.tensor([0.0, 0.0, 0.0, 1.0, 0.0])).double()], 1: []}
    found = directions(of(x), SIZES, matters, [0.5, 0.5], {})
    assert int(found.basis[:, 0].abs().argmax()) == 3
    plain = directions(of(x), SIZES, {}, [0.5, 0.5], {})
    assert int(plain.basis[:, 0].abs().argmax()) == 0
    assert torch.allclose(plain.energy, plain.energy.sort(descending=True).values)


@pytest.mark.parametrize("width", [3, 5, 8])
def test_norms_are_compensated(width: int) -> None:
    """Behind norms a stream is read right at every width that holds it, and written as loud."""
    loud = {0: 2.0, 1: 0.5}
    generator = torch.Generator().manual_seed(0)
    small = torch.randn(300, 3, generator=generator).double()
    small = small / small.square().mean(1, keepdim=True).sqrt()
    turn = torch.linalg.qr(torch.randn(5, 5, generator=generator).double())[0][:3]
    normed = {0: small @ turn * (5 / 3) ** 0.5, 1: small}  # one stream in two bases
    x = torch.cat(list(normed.values()), 1)
    partition = directions(of(x), SIZES, {}, [0.5, 0.5], loud).partition(width)
    stream = sum(loud[m] * normed[m] @ partition.writes[m] for m in SIZES)
    level = stream.square().mean(1).sqrt()
    torch.testing.assert_close(level, torch.ones(300).double())  # geometric mean of 2 and .5
    for m in SIZES:
        read = stream / level[:, None] @ partition.readoff[m].T
        torch.testing.assert_close(read, normed[m], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("kept", [0, 1])
@pytest.mark.parametrize("width", [5, 8])
def test_a_parent_without_weight_leaves_no_trace(kept: int, width: int) -> None:
    x = features()
    weights = [float(m == kept) for m in SIZES]
    partition = directions(of(x), SIZES, {}, weights, {}).partition(width)
    assert not bool(partition.writes[1 - kept].any())
    merged, *read = through(x, width, weights, {})
    mine = x.split(list(SIZES.values()), 1)[kept]
    torch.testing.assert_close(read[kept], mine, rtol=1e-9, atol=1e-9)
    assert bool(read[1 - kept].any())  # read off the other by least squares


def test_a_small_weight_counts_little() -> None:
    x = features()
    errors = []
    for share in (0.5, 0.9, 0.99):
        _, first, _ = through(x, 5, [share, 1 - share], {})
        errors.append(float((first - x[:, :5]).square().sum()))
    assert errors == sorted(errors, reverse=True)


def test_loss_of_a_budget() -> None:
    """What the width dial says is what is lost."""
    x = features()
    found = directions(of(x), SIZES, {}, [0.5, 0.5], {})
    partitions = [found.partition(width) for width in (2, 5, 8)]
    eye = torch.eye(8, dtype=torch.float64)
    lost = shares_lost(of(x), eye, partitions, [0.5, 0.5])
    energy = torch.linalg.eigvalsh(of(x))
    wanted = torch.stack([energy[:6].sum(), energy[:3].sum(), torch.zeros(())]) / energy.sum()
    torch.testing.assert_close(lost, wanted, rtol=0, atol=1e-5)  # its ridge of the correlations
    assert [p.merged for p in partitions] == [6, 3, 0]
