"""Allocations that a family of models has a configuration for."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from hetmerge.allocation import Allocation, Problem, allocate

REFUSALS = 16  # of widths beside one number of heads
QUESTIONS = 100  # in all, before streams and heads stay as they are
COUNTS = 1000  # combinations of numbers of heads at most


@dataclass(frozen=True)
class Consent:
    """What has to be asked before widths are taken.

    Attributes:
        fits: widths -> there is a configuration of these.
        streams: problem's spaces whose width a configuration may tie to others: streams.
        units: those that count heads or groups.
        usual: per space, the width that is always allowed beside all others.
    """

    fits: Callable[[Sequence[int]], bool]
    streams: Sequence[int]
    units: Sequence[int]
    usual: Sequence[int]

    def allocate(self, problem: Problem) -> Allocation | None:
        """The best of the choices that fit; None where none of those that were looked at does.

        Numbers of heads are tried from the most promising on until no other can lose less; beside
        each, the streams take the best widths that fit, of the first that are asked about.
        """
        found = allocate(problem)
        if found is None or self.fits(_widths(problem, found)):
            return found
        bound, best = found.bound, None
        tried: list[tuple[float, int, Problem, Allocation]] = []
        questions = iter(range(QUESTIONS))
        for counts in self._counts(problem):
            part = _at(problem, dict(zip(self.units, counts, strict=True)))
            if (first := _best(part)) is not None:
                tried.append((first.loss, len(tried), part, first))
        for _, _, part, first in sorted(tried):
            if best is None or first.bound < best.loss:
                best = self._better(problem, best, self._beside(part, first, questions))
        usual = {s: self.usual[s] for s in (*self.streams, *self.units)}
        part = _at(problem, usual)
        if (last := _best(part)) is not None:
            best = self._better(problem, best, _widths(part, last))
        return best and replace(best, bound=bound)

    def _counts(self, problem: Problem) -> list[tuple[int, ...]]:
        widths = [[int(n) for n in problem.widths[s]] for s in self.units]
        if math.prod(map(len, widths)) > COUNTS:
            return []
        return list(itertools.product(*widths))

    def _beside(
        self, part: Problem, found: Allocation | None, questions: Iterator[int]
    ) -> list[int] | None:
        """Widths that fit, streams at the best that do."""
        for _ in itertools.islice(questions, REFUSALS):
            if found is None:
                return None
            widths = _widths(part, found)
            if self.fits(widths):
                return widths
            if not self.streams:
                return None
            part = _without(part, self.streams[0], widths[self.streams[0]])
            found = _best(part)
        return None

    def _better(
        self, problem: Problem, best: Allocation | None, widths: list[int] | None
    ) -> Allocation | None:
        if widths is None:
            return best
        pairs = zip(problem.widths, widths, strict=True)
        choice = [int(np.searchsorted(known, n)) for known, n in pairs]
        loss = problem.loss(choice)
        return Allocation(choice, loss, loss) if best is None or loss < best.loss else best


def _best(problem: Problem) -> Allocation | None:
    return allocate(problem) if all(map(len, problem.widths)) else None


def _widths(problem: Problem, found: Allocation) -> list[int]:
    return [int(w[k]) for w, k in zip(problem.widths, found.choice, strict=True)]


def _at(problem: Problem, fixed: dict[int, int]) -> Problem:
    """With one width for some of the spaces."""
    for s, width in fixed.items():
        problem = _keeping(problem, s, problem.widths[s] == width)
    return problem


def _without(problem: Problem, space: int, width: int) -> Problem:
    return _keeping(problem, space, problem.widths[space] != width)


def _keeping(problem: Problem, space: int, kept: NDArray[np.bool_]) -> Problem:
    widths, losses = list(problem.widths), list(problem.losses)
    widths[space], losses[space] = widths[space][kept], losses[space][kept]
    return replace(problem, widths=widths, losses=losses)
