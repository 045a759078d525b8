"""How loud features are in front of norms, and the norms for which that must be known."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from hetmerge.batches import Call, comparable
from hetmerge.execution import Walker
from hetmerge.norms import Norm
from hetmerge.partition import merged_size
from hetmerge.setting import Setting
from hetmerge.streams import members_at
from hetmerge.tracing.expr import Expr, leaves


class Squares:
    """Mean squares of every feature of the parents in front of one norm."""

    def __init__(self) -> None:
        self._sums: dict[int, Tensor] = {}  # parent -> [features] float64
        self._rows: dict[int, int] = {}

    def update(self, setting: Setting, walkers: Sequence[Walker], call: Call, norm: str) -> None:
        """Add one batch at the skeleton node in front of the norm."""
        for m, node in members_at(setting, norm).items():
            value = comparable(walkers[m].value(node)[0], call, m)
            rows = value.reshape(-1, value.shape[-1])
            found = torch.linalg.vector_norm(rows, dim=0, dtype=torch.float64).square()
            self._sums[m] = found + self._sums.get(m, 0.0)
            self._rows[m] = len(rows) + self._rows.get(m, 0)

    def means(self) -> dict[int, Tensor]:
        """Parent that has the norm -> [features] float64, on the CPU."""
        return {m: total.cpu() / max(self._rows[m], 1) for m, total in self._sums.items()}

    def state_dict(self) -> dict[str, Any]:
        """All there is to know, for :meth:`from_state_dict`."""
        return {"sums": self._sums, "rows": self._rows}

    @classmethod
    def from_state_dict(cls, state: dict[str, Any]) -> Squares:
        found = cls()
        found._sums.update(state["sums"])
        found._rows.update(state["rows"])
        return found


def loudness(places: Iterable[Squares]) -> dict[int, float]:
    """Parent -> root mean square, the geometric mean over the places in front of norms."""
    logs: dict[int, list[float]] = {}
    for place in places:
        for m, means in place.means().items():
            logs.setdefault(m, []).append(math.log(max(float(means.mean()), 1e-300)) / 2)
    return {m: math.exp(sum(found) / len(found)) for m, found in logs.items()}


def uneven_norms(setting: Setting) -> list[Norm]:
    """Norms of the skeleton over more features in one parent than in another."""
    return [
        norm
        for norm in setting.skeleton.norms
        if len(set(_sizes(setting, source_expr(setting, norm)).values())) > 1
    ]


def source_expr(setting: Setting, norm: Norm) -> Expr:
    """How what a norm takes is built from spaces, along the dimension that it is over."""
    return setting.skeleton.graph.values[norm.source][-1]


def _sizes(setting: Setting, expr: Expr) -> dict[int, int]:
    """Parent that has all spaces of a dimension -> its size there."""
    spaces = {leaf.space for leaf in leaves(expr) if leaf.space >= 0}
    have = [set(setting.members(k)) for k in spaces]
    return {
        m: merged_size(expr, {k: setting.width(m, k) for k in spaces})
        for m in sorted(set.intersection(*have) if have else ())
    }
