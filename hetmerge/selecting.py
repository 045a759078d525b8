"""A selection for one space: which features of the parents are kept, and how the rest are read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from hetmerge.ops.selection import Gram, Selection, select
from hetmerge.partition import Partition

ROWS = 1024  # that are multiplied at a time


def selection(
    covariance: Tensor,
    sizes: Mapping[int, int],
    importances: Mapping[int, Sequence[Tensor | Gram]],
    weights: Sequence[float],
    width: int,
) -> Partition:
    """Keep the features that best explain all of them where it matters."""
    order = ranked(covariance, sizes, importances, weights, width)
    return keep(covariance, sizes, order.features, order.live)


def ranked(
    covariance: Tensor,
    sizes: Mapping[int, int],
    importances: Mapping[int, Sequence[Tensor | Gram]],
    weights: Sequence[float],
    width: int,
) -> Selection:
    """The order in which a selection keeps features, whatever its width.

    Args:
        covariance: [O, O] float64 of all parents' features, parent after parent.
        sizes: parent -> features; O is their sum.
        importances: parent -> per place that reads its features, [size, size]; each place counts
            the same, a parent counts by its weight.
        weights: of all parents; features of a parent of weight 0 are not kept.
        width: features to rank; fewer where parents have no weight.
    """
    heard = [m for m in sizes if weights[m] > 0] or list(sizes)
    blocks = _Importances(covariance, sizes, importances, weights, heard)
    if len(heard) == len(sizes):
        return select(covariance, blocks, min(width, len(covariance)))
    spans, every = spans_of(sizes), torch.arange(len(covariance), device=covariance.device)
    at = torch.cat([every[spans[m]] for m in heard])
    covariance = covariance[at[:, None], at]
    found = select(covariance, blocks, min(width, len(at)))
    return replace(found, features=at[found.features])


def importance_of(
    covariance: Tensor,
    sizes: Mapping[int, int],
    importances: Mapping[int, Sequence[Tensor | Gram]],
    weights: Sequence[float],
) -> Tensor:
    """[O, O] float64, how errors in the features of all parents count; see :func:`ranked`."""
    blocks = _Importances(covariance, sizes, importances, weights, list(sizes))
    found: Tensor = torch.block_diag(*map(whole, blocks))
    return found


def whole(importance: Tensor | Gram) -> Tensor:
    """As a matrix."""
    return importance.whole() if isinstance(importance, Gram) else importance


@dataclass(frozen=True)
class _Importances(Sequence[Tensor | Gram]):
    """Of some of the parents [size, size] float64 each, computed whenever it is looked at."""

    covariance: Tensor
    sizes: Mapping[int, int]
    importances: Mapping[int, Sequence[Tensor | Gram]]
    weights: Sequence[float]
    members: Sequence[int]

    def __len__(self) -> int:
        return len(self.members)

    def __getitem__(self, index: Any) -> Any:
        m = self.members[index]
        span = spans_of(self.sizes)[m]
        own = self.covariance[span, span]
        few, found = own.new_zeros(0, len(own)), None
        for place in self.importances.get(m, ()):
            scale = _trace(place, own)
            if scale <= 0:
                continue
            share = self.weights[m] / scale
            if isinstance(place, Gram) and len(few) + len(place.rows) < len(own):
                few = torch.cat([few, place.rows.to(own) * share**0.5])
                continue
            found = torch.zeros_like(own) if found is None else found
            found.add_(whole(place).to(own), alpha=share)
        return Gram(few) if found is None else found.addmm_(few.T, few)


def _trace(importance: Tensor | Gram, covariance: Tensor) -> float:
    """tr(Q C)."""
    if isinstance(importance, Gram):
        rows = importance.rows.to(covariance)
        return float(((rows @ covariance) * rows).sum())
    pairs = zip(importance.split(ROWS), covariance.split(ROWS), strict=True)
    return sum(float((a.to(b) * b).sum()) for a, b in pairs)


def keep(covariance: Tensor, sizes: Mapping[int, int], chosen: Tensor, live: int) -> Partition:
    """The map that keeps these features and reads the others off them by least squares.

    Args:
        covariance: [O, O] float64 of all parents' features, parent after parent.
        sizes: parent -> features; O is their sum.
        chosen: int64, the features that are kept.
        live: how many of them, from the first, the others are read off.
    """
    spans = spans_of(sizes)
    labels = chosen.new_full((len(covariance),), -1)
    labels[chosen.sort().values] = torch.arange(len(chosen), device=chosen.device)
    own = {m: labels[span] for m, span in spans.items()}
    readoff = _read_off(covariance, chosen[:live], labels, len(chosen))
    lost = readoff.split([int((x < 0).sum()) for x in own.values()])
    return Partition(len(chosen), own, dict(zip(own, lost, strict=True))).cpu()


def _read_off(covariance: Tensor, live: Tensor, labels: Tensor, width: int) -> Tensor:
    """[lost, width] float64: the features that are not kept, regressed on the live ones."""
    lost = (labels < 0).nonzero().flatten()
    matrix = covariance.new_zeros(len(lost), width)
    if len(live) and len(lost):
        factors = torch.linalg.lu_factor(covariance[live[:, None], live])
        for rows in torch.arange(len(lost), device=live.device).split(ROWS):
            found = torch.linalg.lu_solve(*factors, covariance[live[:, None], lost[rows]])
            matrix[rows[:, None], labels[live]] = found.T
    return matrix


def spans_of(sizes: Mapping[int, int]) -> dict[int, slice]:
    """Where each parent's features stand among those of all, parent after parent."""
    spans, start = {}, 0
    for m, count in sizes.items():
        spans[m] = slice(start, start + count)
        start += count
    return spans
