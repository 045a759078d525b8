"""Greedy elastic zip, step by step as published: the specification of ``ops.zipping``."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray


class Zip(NamedTuple):
    labels: NDArray[np.int64]  # [O]
    heights: NDArray[np.float64]  # [merges]
    relaxed: bool


def zip_match(
    similarity: NDArray[Any],  # [O, O] float32 or float64, symmetric, finite
    sizes: Sequence[int],
    width: int,
    alpha: float,
    beta: float,
) -> Zip:
    """Merge the most similar pair of clusters until ``width`` are left. O(O^3).

    arXiv 2501.00061, elastic neuron zipping, with one addition: where the within-model budgets
    leave no pair open, they are dropped instead of losing a feature (``relaxed``). Values are
    rounded to the matrix dtype after every product and saturate instead of overflowing.
    """
    sim = np.array(similarity)
    total = len(sim)
    origin = np.repeat(np.arange(len(sizes)), sizes)
    removals = total - width
    budget = [math.floor(removals * size // total * beta + 1e-4) for size in sizes]
    closed = np.zeros((total, total), bool)  # pairs out of budget; sim keeps their true values
    cluster = np.arange(total)  # smallest member of each unit's cluster
    heights: list[float] = []
    relaxed = False
    while len(live := np.unique(cluster)) > width:
        block = np.ix_(live, live)
        candidates = np.triu(~closed[block], 1)
        if not candidates.any():
            closed[:] = False
            relaxed = True
            continue
        flat = np.where(candidates, sim[block], -np.inf).argmax()
        i, j = (live[k] for k in np.unravel_index(flat, candidates.shape))
        heights.append(float(sim[i, j]))
        sim[i] = sim[:, i] = _shrink(np.minimum(sim[i], sim[j]), alpha)
        closed[i] = closed[:, i] = closed[i] | closed[j]
        cluster[cluster == j] = i
        if origin[i] == origin[j] and not relaxed:
            budget[origin[i]] -= 1
            if budget[origin[i]] <= 0:
                same = (origin == origin[i]) & np.isin(np.arange(total), cluster)
                closed |= np.outer(same, same)
    return Zip(np.unique(cluster, return_inverse=True)[1], np.array(heights), relaxed)


def _shrink(values: NDArray[Any], alpha: float) -> NDArray[Any]:
    limit = np.finfo(values.dtype).max
    with np.errstate(over="ignore"):
        shrunk: NDArray[Any] = np.clip(values * values.dtype.type(alpha), -limit, limit)
    return shrunk
