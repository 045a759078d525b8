"""Whole units that are kept, against every subset; reading the others off them."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

import hetmerge.heads as heads
from hetmerge.heads import best_units, keep_units, lost_without
from hetmerge.partition import through
from hetmerge.tracing.expr import Leaf, Product


def setting(units: int, size: int, seed: int = 0) -> tuple[Tensor, Tensor, list[Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    total = units * size
    x = torch.randn(400, total, generator=generator, dtype=torch.float64)
    x = x @ torch.randn(total, total, generator=generator, dtype=torch.float64)
    g = torch.randn(300, total, generator=generator, dtype=torch.float64)
    return x.T @ x / 400, g.T @ g / 300, list(torch.arange(total).split(size))


def lost(second: Tensor, importance: Tensor, at: Tensor) -> float:
    """tr(Q E), from least squares as written."""
    read = torch.linalg.solve(second[at][:, at], second[at]).T
    rest = second - read @ second[at]
    return float((importance * rest).sum())


def test_the_best_of_all_subsets() -> None:
    second, importance, units = setting(6, 2)
    found = best_units(second, importance, units, 3)
    every = itertools.combinations(range(6), 3)
    wanted = min(every, key=lambda s: lost(second, importance, torch.cat([units[i] for i in s])))
    assert found == list(wanted)


def test_one_by_one_takes_the_best_next(monkeypatch: pytest.MonkeyPatch) -> None:
    second, importance, units = setting(9, 2, seed=3)
    monkeypatch.setattr(heads, "SUBSETS", 1)
    found = best_units(second, importance, units, 4)
    chosen: list[int] = []
    for _ in range(4):
        left = [i for i in range(9) if i not in chosen]
        losses = {
            i: lost(second, importance, torch.cat([units[k] for k in (*chosen, i)])) for i in left
        }
        chosen.append(min(losses, key=lambda i: losses[i]))
    assert found == sorted(chosen)


def test_what_is_lost_without_the_others() -> None:
    """Share of tr(Q C) for the first k of the units that are chosen one by one."""
    second, importance, units = setting(7, 3, seed=4)
    found = lost_without(second, importance, units)
    nothing = torch.zeros(0, dtype=torch.int64)
    whole = lost(second, importance, nothing)
    chosen: list[int] = []
    for k in range(7):
        at = torch.cat([nothing, *(units[i] for i in chosen)])
        assert float(found[k]) == pytest.approx(lost(second, importance, at) / whole, abs=1e-4)
        left = [i for i in range(7) if i not in chosen]
        losses = {
            i: lost(second, importance, torch.cat([units[j] for j in (*chosen, i)])) for i in left
        }
        chosen.append(min(losses, key=lambda i: losses[i]))
    assert float(found[7]) == pytest.approx(0, abs=1e-4)
    assert lost_without(second, 0 * importance, units).tolist() == [0.0] * 8


def test_a_copy_is_read_off_exactly() -> None:
    second, _, _ = setting(3, 2)
    double = torch.cat([torch.cat([second, second], 1)] * 2)
    units = list(torch.arange(12).split(2))
    partition = keep_units(double, {0: 3, 4: 3}, units, [0, 1, 5])
    assert [x.tolist() for x in partition.labels.values()] == [[0, 1, -1], [-1, -1, 2]]
    assert partition.alone
    weight = torch.randn(4, 6, dtype=torch.float64)
    expr = Product((Leaf(0, 3), Leaf(1, 2)))
    for m in (0, 4):
        table = {0: partition.of(m)}
        read = through(weight, 1, expr, table, {0: partition.readoff[m]})
        torch.testing.assert_close(read, weight, rtol=1e-9, atol=1e-9)
