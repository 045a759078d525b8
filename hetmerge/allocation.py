"""The least loss within a budget: one width per space, chosen together."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from hetmerge.elimination import Array, Elimination, Table

ROUNDS = 60  # of the multiplier
CHOICES = 2000  # looked at to close the gap
TINY = 1e-300


@dataclass(frozen=True)
class Allocation:
    """Outcome of an allocation.

    Attributes:
        choice: per space, index into its widths.
        loss: sum of the losses there.
        bound: no choice within the budget loses less than this.
    """

    choice: list[int]
    loss: float
    bound: float


@dataclass(frozen=True)
class Problem:
    """Minimise the sum of losses where ``sum of coefficient * product of widths <= limit``.

    Attributes:
        widths: per space, the widths it may have, ascending and at least 1.
        losses: per space, what is lost at each of them.
        coefficients: [terms], positive.
        exponents: [terms, spaces] how often a term has the width of a space as factor.
        limit: the budget.
    """

    widths: list[Array]
    losses: list[Array]
    coefficients: Array
    exponents: NDArray[np.int64]
    limit: float

    def loss(self, choice: Sequence[int]) -> float:
        return float(sum(curve[k] for curve, k in zip(self.losses, choice, strict=True)))

    def cost(self, choice: Sequence[int]) -> float:
        return float(self._terms(choice).sum())

    def costs(self, choice: Sequence[int], space: int) -> Array:
        """[widths] cost if one space changes to each of its widths."""
        ratio = self.widths[space] / self.widths[space][choice[space]]
        found: Array = ratio[:, None] ** self.exponents[:, space] @ self._terms(choice)
        return found

    def _terms(self, choice: Sequence[int]) -> Array:
        chosen = np.array([w[k] for w, k in zip(self.widths, choice, strict=True)])
        values: Array = self.coefficients * np.prod(chosen**self.exponents, axis=1)
        return values

    def useful(self) -> Problem:
        """Without widths that lose no less than a narrower one: another is as good, for less."""
        keep = []
        for curve in self.losses:
            before = np.minimum.accumulate(np.concatenate([[np.inf], curve[:-1]]))
            keep.append(np.flatnonzero(curve < before))
        return Problem(
            [w[k] for w, k in zip(self.widths, keep, strict=True)],
            [c[k] for c, k in zip(self.losses, keep, strict=True)],
            self.coefficients,
            self.exponents,
            self.limit,
        )

    def tables(self) -> tuple[float, list[Table]]:
        """The cost as a constant and one table per set of spaces that are multiplied."""
        constant, found = 0.0, dict[tuple[int, ...], Array]()
        for coefficient, powers in zip(self.coefficients, self.exponents, strict=True):
            scope = tuple(int(s) for s in np.flatnonzero(powers))
            values = np.array(coefficient)
            for s in scope:
                values = np.multiply.outer(values, self.widths[s] ** powers[s])
            if scope:
                found[scope] = found.get(scope, 0.0) + values
            else:
                constant += float(coefficient)
        return constant, [Table(scope, values) for scope, values in found.items()]


def allocate(problem: Problem) -> Allocation | None:
    """Choose the width of every space; None where even the smallest widths cost too much.

    Lagrangian relaxation: for a price per unit of cost, ``loss + price * (cost - limit)`` is
    minimised exactly (:class:`Elimination`; its tables are as wide as spaces are entangled), and
    that minimum is below every loss within the budget. The price is raised until the minimiser is
    within the budget; what remains of it is spent where it gains most. Choices that the bound does
    not exclude are then looked at, up to 2,000 of them.
    """
    smallest, small = [0] * len(problem.widths), problem.useful()
    if problem.cost(smallest) > problem.limit:
        return None
    best = [len(w) - 1 for w in small.widths]
    if small.cost(best) <= small.limit:
        bound = small.loss(best)
    else:
        best, bound = _search(small, smallest, best)
    widths = [int(w[k]) for w, k in zip(small.widths, best, strict=True)]
    choice = [int(np.searchsorted(w, n)) for w, n in zip(problem.widths, widths, strict=True)]
    loss = problem.loss(choice)
    return Allocation(choice, loss, min(bound, loss))


def _search(problem: Problem, low: list[int], high: list[int]) -> tuple[list[int], float]:
    """The best choice found, and the greatest lower bound.

    Args:
        low, high: a choice within the budget, and one beyond it that loses less.
    """
    constant, tables = problem.tables()
    curves = [Table((s,), curve) for s, curve in enumerate(problem.losses)]
    sizes = [len(w) for w in problem.widths]
    best, bound, last = low, 0.0, None
    for _ in range(ROUNDS):
        # Where both choices are equally good: the minimum there lies between them or is theirs.
        gain, saved = problem.loss(low) - problem.loss(high), problem.cost(high) - problem.cost(low)
        price = gain / saved
        priced = [Table(t.scope, price * t.values) for t in tables]
        minimiser = Elimination([*curves, *priced], sizes)
        below = minimiser.minimum + price * (constant - problem.limit)
        found = next(minimiser.choices(minimiser.minimum))
        best = _better(problem, best, [_filled(problem, _shrunk(problem, found))])
        if below > bound or last is None:
            bound, last = max(below, bound), (minimiser, price)
        value = problem.loss(found) + price * problem.cost(found)
        if value >= (problem.loss(low) + price * problem.cost(low)) * (1 - 1e-12):
            break
        if problem.cost(found) <= problem.limit:
            low = found
        else:
            high = found
    assert last is not None
    minimiser, price = last
    worth = problem.loss(best) + price * (problem.limit - constant)
    return _better(problem, best, islice(minimiser.choices(worth), CHOICES)), bound


def _better(problem: Problem, best: list[int], others: Iterable[list[int]]) -> list[int]:
    """The one that loses least of those within the budget."""
    for other in others:
        if problem.loss(other) < problem.loss(best) and problem.cost(other) <= problem.limit:
            best = other
    return best


def _shrunk(problem: Problem, choice: Sequence[int]) -> list[int]:
    """Narrow the space that loses least per cost saved until the budget is met."""
    found = list(choice)
    while problem.cost(found) > problem.limit:
        steps = []
        for space, width in enumerate(found):
            if width:
                costs, losses = problem.costs(found, space), problem.losses[space]
                saved = max(costs[width] - costs[width - 1], TINY)
                steps.append(((losses[width - 1] - losses[width]) / saved, space))
        found[min(steps)[1]] -= 1
    return found


def _filled(problem: Problem, choice: Sequence[int]) -> list[int]:
    """Widen the space that gains most per cost added while the budget allows."""
    found = list(choice)
    while True:
        steps = []
        for space, width in enumerate(found):
            costs, losses = problem.costs(found, space), problem.losses[space]
            wider = np.flatnonzero(costs <= problem.limit)
            wider = wider[wider > width]
            if len(wider):
                added = np.maximum(costs[wider] - costs[width], TINY)
                rate = (losses[width] - losses[wider]) / added
                steps.append((float(rate.max()), -space, int(wider[rate.argmax()])))
        if not steps:
            return found
        _, space, width = max(steps)
        found[-space] = width
