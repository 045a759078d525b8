"""Widths that a family has a configuration for, against every choice there is."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hetmerge.allocation import Problem
from hetmerge.consent import Consent


def problem(limit: float, seed: int) -> Problem:
    """A stream, heads that must divide it, and an MLP."""
    widths = [np.arange(4, 25.0), np.arange(2, 7.0), np.arange(8, 41.0)]
    rng = np.random.default_rng(seed)
    losses = [np.sort(rng.random(len(w)))[::-1].copy() for w in widths]
    for loss in losses:
        loss[-1] = 0
    exponents = np.array([[1, 0, 0], [1, 1, 0], [1, 0, 1]])
    return Problem(widths, losses, np.array([10.0, 16.0, 3.0]), exponents, limit)


def divides(widths) -> bool:
    return widths[0] % widths[1] == 0


def best(given: Problem) -> float:
    every = itertools.product(*(range(len(w)) for w in given.widths))
    fine = (c for c in every if divides([w[k] for w, k in zip(given.widths, c, strict=True)]))
    return min(given.loss(c) for c in fine if given.cost(c) <= given.limit)


@given(limit=st.integers(600, 6000), seed=st.integers(0, 50))
def test_as_good_as_the_best_that_fits(limit: int, seed: int) -> None:
    """Up to what the refusals leave out, which here is nothing, and the gap of an allocation."""
    asked = problem(limit, seed)
    consent = Consent(divides, streams=[0], units=[1], usual=[8, 2, 16])
    found = consent.allocate(asked)
    assert found is not None
    widths = [w[k] for w, k in zip(asked.widths, found.choice, strict=True)]
    assert divides(widths)
    assert asked.cost(found.choice) <= limit
    assert found.loss == pytest.approx(asked.loss(found.choice))
    assert found.bound - 1e-9 <= best(asked) <= found.loss + 1e-9
    assert found.loss <= best(asked) + 0.02


def test_what_is_usual_where_nothing_else_fits() -> None:
    def usual(widths) -> bool:
        return list(widths[:2]) == [20, 3]

    consent = Consent(usual, streams=[0], units=[1], usual=[20, 3, 16])
    asked = problem(5000, 0)
    found = consent.allocate(asked)
    assert found is not None
    assert [w[k] for w, k in zip(asked.widths, found.choice, strict=True)][:2] == [20, 3]
    assert consent.allocate(problem(600, 0)) is None  # the usual costs more


def test_all_that_fits_is_an_allocation_as_it_was() -> None:
    asked, questions = problem(2000, 3), []
    consent = Consent(lambda w: not questions.append(w), [0], [1], [8, 2, 16])
    found = consent.allocate(asked)
    assert found is not None
    assert len(questions) == 1
