"""Norms over merged features that a parent has only some of: what its own norms did not count.

A norm divides by the root mean square of all merged features. Where a parent has n of D, and these
are g times as loud as the mean of all, what it reads behind the norm is g times as loud as in the
parent; so what multiplies that - the norm's scale, or the layers that carry it - is divided by g.
With weights that are zero for features that another network has not, this is exact.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from hetmerge.loudness import Squares, source_expr, uneven_norms
from hetmerge.partition import Partition, Spread, dim_labels
from hetmerge.setting import Setting
from hetmerge.tracing.expr import Expr, leaves

CLOSE = 1e-9  # a factor that is one but for rounding


def norm_scales(
    setting: Setting,
    squares: Mapping[str, Squares],
    partitions: Mapping[int, Partition],
    weights: Sequence[float],
) -> dict[str, list[float]]:
    """Tensor of the skeleton -> what each parent's is multiplied by; only where that is not 1.

    Spaces with dense maps are left out: an orthogonal map keeps the loudness by itself, and what a
    selection reads off is no share of the merged features.

    Args:
        squares: node in front of a norm -> mean squares of the parents' features there.
        weights: of all parents.
    """
    found: dict[str, list[float]] = {}
    for norm in uneven_norms(setting):
        expr = source_expr(setting, norm)
        if not norm.carriers or norm.source not in squares or not _divided(expr, partitions):
            continue
        labels = _labels(expr, partitions, len(setting.parents))
        gains = _gains(labels, squares[norm.source].means(), weights, norm.mean)
        factors = [1 / gains.get(m, 1.0) for m in range(len(setting.parents))]
        if any(abs(factor - 1) > CLOSE for factor in factors):
            found.update((tensor, factors) for tensor, _ in norm.carriers)
    return found


def uncarried(setting: Setting) -> list[str]:
    """Remarks on norms whose features nothing can make louder."""
    stacks = setting.skeleton.nodes.stacks
    norms = [n for n in uneven_norms(setting) if not n.carriers]
    where = list(dict.fromkeys((stacks[n.node][-1:] or ("the model",))[0] for n in norms))
    more = f" (and {len(where) - 1} more)" if len(where) > 1 else ""
    return [
        f"the norm in {path}{more} is over more features in the merged network than in some "
        "parent, which reads it louder or quieter: no weight can make up for it"
        for path in where[:1]
    ]


class NormFactors:
    """Applies what :func:`norm_scales` found to tensors of the parents."""

    def __init__(self, setting: Setting, scales: Mapping[str, Sequence[float]]) -> None:
        self._scales = scales
        self._offsets = dict(x for norm in setting.skeleton.norms for x in norm.carriers)

    def of(self, parent: int, name: str, tensor: Tensor) -> Tensor:
        """A parent's part of the skeleton's tensor `name`, or some rows of it, scaled."""
        if name not in self._scales:
            return tensor
        offset, factor = self._offsets[name], self._scales[name][parent]
        return (tensor + offset) * factor - offset if offset else tensor * factor


def _divided(expr: Expr, partitions: Mapping[int, Partition]) -> bool:
    """Every space of a dimension has a partition without dense maps."""
    spaces = {leaf.space for leaf in leaves(expr) if leaf.space >= 0}
    known = [partitions.get(k) for k in spaces]
    return all(p is not None and not len(p.readoff) and not p.writes for p in known)


def _labels(
    expr: Expr, partitions: Mapping[int, Partition], parents: int
) -> dict[int, tuple[Tensor, int]]:
    """Parent with all spaces of a dimension -> where its features go, and how many there are."""
    spaces = {leaf.space for leaf in leaves(expr) if leaf.space >= 0}
    found = {}
    for m in range(parents):
        if all(m in partitions[k].labels for k in spaces):
            table: dict[int, Spread] = {k: partitions[k].of(m) for k in spaces}
            found[m] = dim_labels(expr, table)
    return found


def _gains(
    labels: Mapping[int, tuple[Tensor, int]],
    means: Mapping[int, Tensor],
    weights: Sequence[float],
    mean: bool,
) -> dict[int, float]:
    """Parent -> how loud its merged features are beside all of them.

    A cluster is as loud as its features are, each beside the mean of its parent, in the weighted
    mean over the parents; a parent that was not seen counts as evenly loud.
    """
    width = next(iter(labels.values()))[1]
    loud, mass, plain, count = torch.zeros(4, width, dtype=torch.float64)
    kept = {}
    for m, (where, _) in labels.items():
        inside = where >= 0
        own = means.get(m, torch.ones(len(where), dtype=torch.float64))
        energy = own / own.mean() if float(own.mean()) > 0 else torch.ones_like(own)
        sums, counts = torch.zeros(2, width, dtype=torch.float64)
        sums.index_add_(0, where[inside], energy[inside])
        counts.index_add_(0, where[inside], torch.ones_like(energy[inside]))
        kept[m] = counts > 0
        found = sums / counts.clamp_min(1)
        loud += weights[m] * found
        mass += weights[m] * kept[m]
        plain += found
        count += kept[m]
    energy = torch.where(mass > 0, loud / mass, plain / count.clamp_min(1))
    gains = {}
    for m, mine in kept.items():
        of_all = energy.mean() if mean else energy.sum()
        of_mine = energy[mine].mean() if mean else energy[mine].sum()
        known = bool(mine.any()) and float(of_all) > 0 and float(of_mine) > 0
        gains[m] = float((of_mine / of_all).sqrt()) if known else 1.0
    return gains
