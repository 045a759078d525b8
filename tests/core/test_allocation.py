"""Widths within a budget: the solver against the enumeration of every choice."""

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hetmerge import elimination
from hetmerge.allocation import Allocation, Problem, allocate
from hetmerge.elimination import Elimination, Table

ROUNDING = 1e-9  # sums of some ten doubles below 1e4


def random_problem(seed: int, spaces: int, widths: int) -> Problem:
    """Losses that mostly fall, and costs like those of layers between the spaces."""
    rng = np.random.default_rng(seed)
    sizes = rng.integers(2, widths + 1, spaces)
    grids = [np.sort(rng.choice(np.arange(1, 20), n, replace=False)).astype(float) for n in sizes]
    curves = [np.sort(rng.random(n))[::-1] * rng.choice([0.1, 1, 10]) for n in sizes]
    for curve in curves:
        curve[-1] = 0.0
        rng.shuffle(curve[: rng.integers(1, len(curve))])
    exponents = rng.integers(0, 2, (2 * spaces, spaces))
    exponents[:spaces] += np.eye(spaces, dtype=int)  # every space costs something
    coefficients = rng.integers(1, 10, 2 * spaces).astype(float)
    whole = Problem(grids, curves, coefficients, exponents, 0.0)
    least, most = whole.cost([0] * spaces), whole.cost([n - 1 for n in sizes])
    return Problem(grids, curves, coefficients, exponents, least + rng.random() * (most - least))


def brute_force(problem: Problem) -> float:
    """The least loss of all choices within the budget."""
    every = product(*(range(len(w)) for w in problem.widths))
    return min(problem.loss(c) for c in every if problem.cost(c) <= problem.limit)


def solved(problem: Problem) -> Allocation:
    found = allocate(problem)
    assert found is not None
    return found


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 4), st.integers(2, 6))
def test_no_choice_is_better(seed: int, spaces: int, widths: int) -> None:
    problem = random_problem(seed, spaces, widths)
    found = solved(problem)
    assert problem.cost(found.choice) <= problem.limit
    assert found.loss == pytest.approx(problem.loss(found.choice), abs=ROUNDING)
    assert found.loss == pytest.approx(brute_force(problem), abs=ROUNDING)
    assert found.bound <= found.loss + ROUNDING


def test_more_budget_never_loses_more() -> None:
    problem = random_problem(3, 4, 6)
    most = problem.cost([len(w) - 1 for w in problem.widths])
    least = problem.cost([0] * 4)
    limits = np.linspace(least, most, 40)
    found = [solved(Problem(*problem_parts(problem), limit)) for limit in limits]
    drops = np.diff([f.loss for f in found])
    assert (drops <= ROUNDING).all()
    assert found[0].choice == [0] * 4
    assert found[-1].loss == 0.0
    assert drops.min() < -0.1


def problem_parts(problem: Problem):
    return problem.widths, problem.losses, problem.coefficients, problem.exponents


def test_nothing_fits() -> None:
    problem = random_problem(0, 3, 4)
    limit = problem.cost([0, 0, 0])
    assert solved(Problem(*problem_parts(problem), limit)).choice == [0, 0, 0]
    assert allocate(Problem(*problem_parts(problem), limit - 0.5)) is None


def test_a_long_chain_is_solved_to_a_small_gap() -> None:
    """Thirty spaces of 64 widths: not enumerable, but the bound tells how good the answer is."""
    rng = np.random.default_rng(0)
    grid = np.arange(1.0, 65.0)
    scale = rng.random(30) * 10
    curves = [s * np.exp(-grid / w) for s, w in zip(scale, rng.uniform(5, 30, 30), strict=True)]
    exponents = np.eye(30, dtype=int) + np.eye(30, k=1, dtype=int)
    problem = Problem([grid] * 30, curves, np.full(30, 9.0), exponents, 9 * 30 * 32.0**2)
    found = solved(problem)
    uniform = problem.loss([31] * 30)
    assert problem.cost(found.choice) <= problem.limit
    assert found.bound <= found.loss < 0.9 * uniform
    assert found.loss - found.bound < 0.002 * found.loss


TABLES = [(0,), (0, 1), (1, 2), (0, 2), (2, 3), (1, 3, 4)]


@pytest.mark.parametrize("largest", [1 << 20, 30])
def test_elimination(largest: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(elimination, "LARGEST", largest)
    rng = np.random.default_rng(1)
    sizes = [3, 4, 2, 5, 3]
    tables = [Table(scope, rng.random([sizes[v] for v in scope])) for scope in TABLES]
    sums = {
        choice: sum(t.values[tuple(choice[v] for v in t.scope)] for t in tables)
        for choice in product(*(range(n) for n in sizes))
    }
    found = Elimination(tables, sizes)
    least = min(sums.values())
    if largest < 60:  # some tables are minimised apart: a lower bound
        assert least - 0.5 < found.minimum <= least + ROUNDING
        return
    assert found.minimum == pytest.approx(least, abs=ROUNDING)
    worth = least + 0.8
    every = [tuple(choice) for choice in found.choices(worth)]
    assert sums[every[0]] == pytest.approx(least, abs=ROUNDING)
    assert set(every) == {choice for choice, value in sums.items() if value <= worth}
    assert len(every) == len(set(every)) > 3
