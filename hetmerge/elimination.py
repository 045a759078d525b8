"""Exact minimum of a sum of small tables by eliminating one variable after the other."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
LARGEST = 1 << 21  # entries of a table; above, a variable's tables are minimised apart


@dataclass(frozen=True)
class Table:
    """Values for every combination of some variables' states, one axis each."""

    scope: tuple[int, ...]
    values: Array

    def at(self, choice: Sequence[int], free: int) -> Array:
        """[states of `free`] values where the other variables are as chosen."""
        index = tuple(slice(None) if v == free else choice[v] for v in self.scope)
        found: Array = self.values[index]
        return found


class Elimination:
    """Minimise a sum of tables.

    Bucket elimination: the tables that contain a variable are added up and minimised over it,
    which leaves a table of its neighbours. Where that would have more than `LARGEST` entries the
    tables are minimised in groups (mini-buckets), and `minimum` is only a lower bound.

    Attributes:
        minimum: of the sum of all tables.
    """

    def __init__(self, tables: Sequence[Table], sizes: Sequence[int]):
        self.minimum = 0.0
        self._buckets: list[tuple[int, list[Table]]] = []
        left = list(tables)
        for variable in _order([t.scope for t in tables], len(sizes)):
            bucket = [t for t in left if variable in t.scope]
            left = [t for t in left if variable not in t.scope]
            self._buckets.append((variable, bucket))
            for group in _groups(bucket, sizes):
                message = _minimised(group, variable, sizes)
                if message.scope:
                    left.append(message)
                else:
                    self.minimum += float(message.values)
        self._buckets.reverse()

    def choices(self, worth: float) -> Iterator[list[int]]:
        """States of all variables, the best first, then others whose sum is below `worth`.

        Depth first, the better states first, so not sorted.
        """
        choice = [0] * len(self._buckets)
        yield from self._deeper(0, choice, worth - self.minimum)

    def _deeper(self, depth: int, choice: list[int], slack: float) -> Iterator[list[int]]:
        if depth == len(self._buckets):
            yield list(choice)
            return
        variable, bucket = self._buckets[depth]
        scores = sum((t.at(choice, variable) for t in bucket), np.zeros(1))
        over = scores - scores.min()
        for state in np.argsort(over, kind="stable"):
            if over[state] > max(slack, 0.0):
                return
            choice[variable] = int(state)
            yield from self._deeper(depth + 1, choice, slack - float(over[state]))


def _order(scopes: Sequence[tuple[int, ...]], count: int) -> list[int]:
    """Fewest neighbours first."""
    near = [{w for scope in scopes if v in scope for w in scope} - {v} for v in range(count)]
    order: list[int] = []
    left = set(range(count))
    while left:
        variable = min(left, key=lambda v: (len(near[v]), v))
        left.remove(variable)
        order.append(variable)
        for other in near[variable]:
            near[other] = (near[other] | near[variable]) - {other, variable}
    return order


def _groups(bucket: Sequence[Table], sizes: Sequence[int]) -> list[list[Table]]:
    groups: list[list[Table]] = []
    for table in sorted(bucket, key=lambda t: -t.values.size):
        for group in groups:
            scope = {v for t in (*group, table) for v in t.scope}
            if math.prod(sizes[v] for v in scope) <= LARGEST:
                group.append(table)
                break
        else:
            groups.append([table])
    return groups


def _minimised(tables: Sequence[Table], variable: int, sizes: Sequence[int]) -> Table:
    scope = tuple(sorted({v for t in tables for v in t.scope}))
    total = np.zeros([sizes[v] for v in scope])
    for table in tables:  # scopes ascend, so missing axes can be inserted
        shape = [sizes[v] if v in table.scope else 1 for v in scope]
        total += table.values.reshape(shape)
    kept = tuple(v for v in scope if v != variable)
    return Table(kept, total.min(axis=scope.index(variable)))
