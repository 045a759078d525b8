"""Greedy selection against Schur complements formed anew for every step."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hetmerge.errors import InputError
from hetmerge.ops import select
from hetmerge.ops.selection import BLOCK, FLOORS
from hetmerge.reference import selection as reference

FIXED = settings(derandomize=True, deadline=None, database=None, max_examples=60)
# A choice must be as good as the best one up to what rank-one updates in float64 lose: each step
# divides by a variance of at least the floor of the original, 1e-16 / 1e-4^2 in the worst case.
CLOSE = 1e-7


def problem(seed: int, total: int, rank: int, places: int) -> tuple[list[Tensor], list[Tensor]]:
    """Features that share latent directions, and the weight of errors in each of them."""
    rng = torch.Generator().manual_seed(seed)
    covariances, importances = [], []
    for _ in range(places):
        x = torch.randn(4 * total, rank, generator=rng, dtype=torch.float64)
        x = x @ torch.randn(rank, total, generator=rng, dtype=torch.float64)
        x += 0.1 * torch.randn(x.shape, generator=rng, dtype=torch.float64)
        covariances.append(x.T @ x / len(x))
        w = torch.randn(5, total, generator=rng, dtype=torch.float64)
        importances.append(w.T @ w)
    return covariances, importances


def total_loss(covariances: list[Tensor], importances: list[Tensor], chosen: list[int]) -> float:
    pairs = zip(covariances, importances, strict=True)
    return sum(float((q * reference.residual(c, chosen)).sum()) for c, q in pairs)


def check_greedy(covariances: list[Tensor], importances: list[Tensor], width: int) -> None:
    found = select(covariances, importances, width)
    chosen = found.features.tolist()
    assert len(set(chosen)) == width
    whole = total_loss(covariances, importances, [])
    for k in range(width):
        gain = reference.gains(covariances, importances, chosen[:k], FLOORS[0])
        assert float(gain[chosen[k]]) >= float(gain.max()) - CLOSE * whole
        left = total_loss(covariances, importances, chosen[: k + 1])
        assert float(found.loss[k + 1]) == pytest.approx(left / whole, abs=CLOSE)


@FIXED
@given(
    seed=st.integers(0, 2**31),
    total=st.integers(1, 12),
    rank=st.integers(1, 6),
    places=st.integers(1, 3),
    data=st.data(),
)
def test_every_choice_is_the_best_one(
    seed: int, total: int, rank: int, places: int, data: st.DataObject
) -> None:
    covariances, importances = problem(seed, total, rank, places)
    check_greedy(covariances, importances, data.draw(st.integers(1, total)))


def test_more_choices_than_a_block() -> None:
    covariances, importances = problem(0, 2 * BLOCK + 20, 40, 2)
    check_greedy(covariances, importances, BLOCK + 10)


def test_all_features_leave_nothing() -> None:
    covariances, importances = problem(1, 9, 4, 1)
    found = select(covariances[0], importances[0], 9)
    assert sorted(found.features.tolist()) == list(range(9))
    assert float(found.loss[0]) == 1
    assert float(found.loss[-1]) < CLOSE


def test_copies_and_dead_features_come_last() -> None:
    x = torch.randn(50, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x = torch.cat([x, x, torch.zeros(50, 2, dtype=torch.float64)], 1)
    found = select(x.T @ x, torch.eye(10, dtype=torch.float64), 10)
    assert {k % 4 for k in found.features[:4].tolist()} == {0, 1, 2, 3}
    assert float(found.loss[4]) < 1e-12
    assert set(found.features[8:].tolist()) == {8, 9}


def test_only_what_the_next_layer_reads_counts() -> None:
    covariance = torch.diag(torch.tensor([9.0, 4.0, 1.0, 1.0], dtype=torch.float64))
    importance = torch.diag(torch.tensor([0.0, 1.0, 6.0, 0.0], dtype=torch.float64))
    assert select(covariance, importance, 2).features.tolist() == [2, 1]


EYE = torch.eye(3)


@pytest.mark.parametrize(
    ("covariances", "importances", "width", "message"),
    [
        (EYE, torch.eye(2), 1, r"importances\[0\]"),
        ([EYE], [EYE, EYE], 1, "importances: 2 matrices for 1"),
        ([], [], 1, "importances: 0 matrices"),
        (torch.ones(2, 3), EYE, 1, r"covariances\[0\]"),
        (EYE.long(), EYE, 1, r"covariances\[0\]: torch.int64"),
        (EYE * float("nan"), EYE, 1, "NaN"),
        (torch.ones(3, 3).triu(), EYE, 1, "transpose"),
        (EYE, EYE, 0, "width: 0"),
        (EYE, EYE, 4, "width: 4"),
        (EYE, EYE, True, "width: True"),
    ],
)
def test_rejects(covariances: object, importances: object, width: int, message: str) -> None:
    with pytest.raises(InputError, match=message):
        select(covariances, importances, width)  # type: ignore[arg-type]


def test_inputs_are_not_changed() -> None:
    covariances, importances = problem(2, 6, 3, 1)
    before = covariances[0].clone(), importances[0].clone()
    select(covariances[0], importances[0], 4)
    assert torch.equal(covariances[0], before[0])
    assert torch.equal(importances[0], before[1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_overwriting_changes_nothing_but_the_importances(dtype: torch.dtype) -> None:
    covariances, importances = (
        [x.to(dtype) for x in listed] for listed in problem(4, 3 * BLOCK, 20, 2)
    )
    known = [x.clone() for x in covariances]
    wanted = select(covariances, importances, 2 * BLOCK)
    assert all(bool((x == x.T).all()) for x in importances)
    found = select(covariances, importances, 2 * BLOCK, overwrite=True)
    assert torch.equal(found.features, wanted.features)
    assert torch.equal(found.loss, wanted.loss)
    assert all(torch.equal(a, b) for a, b in zip(known, covariances, strict=True))


@pytest.mark.parametrize("at", [(0, 0), (0, 70), (69, 3)])
def test_a_difference_from_the_transpose_is_seen_wherever_it_is(at: tuple[int, int]) -> None:
    (covariance,), (importance,) = problem(5, BLOCK + 8, 20, 1)
    for name, pair in (
        ("covariances", (covariance.clone(), importance)),
        ("importances", (covariance, importance.clone())),
    ):
        changed = pair[0] if name == "covariances" else pair[1]
        changed[at] += float(changed.abs().max()) if at[0] != at[1] else float("nan")
        said = "differs from its transpose" if at[0] != at[1] else "NaN or infinite"
        with pytest.raises(InputError, match=rf"{name}\[0\]: .*{said}"):
            select(*pair, 3)
