"""Selection: the real features that best explain all of them, as the next layers see it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hetmerge.errors import InputError

BLOCK = 64  # features chosen between two updates of the whole matrices
# Share of its variance below which a feature counts as explained by the chosen ones. A lower floor
# only where no feature is left above the one before: what little is left may be noise.
FLOORS = (1e-4, 1e-8, 1e-12)


@dataclass(frozen=True, eq=False)
class Selection:
    """Outcome of a selection.

    Attributes:
        features: [width] int64, the chosen features in the order they were chosen. Where fewer
            carry anything, the smallest of the others fill up.
        loss: [width + 1] float64, share of the weighted variance left unexplained by the first k.
        live: how many of the chosen lowered the loss; the rest fill up.
    """

    features: Tensor
    loss: Tensor
    live: int


def select(
    covariances: Tensor | Sequence[Tensor],
    importances: Tensor | Sequence[Tensor],
    width: int,
    *,
    overwrite: bool = False,
) -> Selection:
    """Choose ``width`` features greedily so that the others can be read off them.

    Least-squares-compensated pruning. With E = C - C_:S C_SS^-1 C_S:, the covariance of what a
    linear read-off of the chosen features S misses, and Q the weight of errors, the loss is
    ``sum over places of tr(Q E)``; every step takes the feature u with the largest gain
    ``(E Q E)_uu / E_uu``. Ties go to the smallest index, up to rounding.

    Pivoted Cholesky in blocks: E and F = E Q E change by rank one and two with each choice, so a
    choice needs one column of each, and whole matrices are touched once in 64 choices. About
    ``6 width O^2`` operations and ``16 O^2`` bytes per place, ``8 O^2`` more while they are made,
    all in float64.

    Args:
        covariances: [O, O] per place where the features are observed (the blocks along a residual
            stream), symmetric positive semidefinite; one tensor for one place.
        importances: Q [O, O] of each place, symmetric positive semidefinite, such as the sum of
            W'W of the layers that read the features.
        width: features to choose, 1 to O.
        overwrite: work in the importances' memory where they are float64; ``24 O^2`` bytes per
            place, then, with the covariances and importances.

    Raises:
        InputError: shapes differ, a matrix is not square, finite and symmetric, or width is out of
            range.
    """
    listed = [covariances] if isinstance(covariances, Tensor) else list(covariances)
    weights = [importances] if isinstance(importances, Tensor) else list(importances)
    total = _check(listed, weights, width)
    places = [_Place(listed[k], weights.pop(0), overwrite) for k in range(len(listed))]
    whole = sum(float(place.loss) for place in places)
    chosen: list[int] = []
    loss = [whole]
    taken = torch.zeros(total, dtype=torch.bool, device=listed[0].device)
    floors = list(FLOORS)
    while len(chosen) < width and floors:
        gain = torch.stack([place.gains(floors[0]) for place in places]).sum(0)
        gain[taken] = -1.0
        best = int(gain.argmax())
        if gain[best] <= 0:
            floors.pop(0)
            continue
        for place in places:
            place.choose(best, floors[0])
        taken[best] = True
        chosen.append(best)
        loss.append(sum(float(place.loss) for place in places))
    live = len(chosen)
    chosen += (~taken).nonzero().flatten()[: width - live].tolist()
    loss += [loss[-1]] * (width - live)
    share = torch.tensor(loss, dtype=torch.float64) / (whole if whole > 0 else 1.0)
    return Selection(torch.tensor(chosen, device=listed[0].device), share.clamp_(0.0, 1.0), live)


class _Place:
    """E and F = E Q E of one place, behind by the choices of the current block."""

    def __init__(self, covariance: Tensor, importance: Tensor, overwrite: bool) -> None:
        wide = covariance.to(torch.float64)
        q = importance.to(torch.float64)
        half = q @ wide
        self.loss = half.diagonal().sum()
        self.f = torch.mm(wide, half, out=q) if overwrite else wide @ half
        del half
        self.e = covariance.to(torch.float64, copy=True)
        self.left = self.e.diagonal().clone()
        self.gain = self.f.diagonal().clone()
        self.variance = self.left.clamp_min(0.0)
        # E -= V V', F -= V W' + W V' - V diag(s) V' are still to be applied.
        self.v = self.e.new_zeros(len(self.e), BLOCK)
        self.w = torch.zeros_like(self.v)
        self.s = self.e.new_zeros(BLOCK)
        self.pending = 0

    def gains(self, floor: float) -> Tensor:
        """[O] gain of every feature at this place; 0 for those already explained."""
        open_ = self.left > floor * self.variance
        return torch.where(open_, self.gain / torch.where(open_, self.left, 1.0), 0.0).clamp_min(0)

    def choose(self, u: int, floor: float) -> None:
        if self.left[u] <= floor * self.variance[u]:
            return  # explained here already; chosen for the sake of another place
        v, w, s = (x[..., : self.pending] for x in (self.v, self.w, self.s))
        scale = self.left[u].rsqrt()
        new_v = (self.e[:, u] - v @ v[u]) * scale
        new_w = (self.f[:, u] - v @ (w[u] - s * v[u]) - w @ v[u]) * scale
        new_s = self.gain[u] * scale.square()
        self.left -= new_v.square()
        self.gain += new_v * (new_s * new_v - 2 * new_w)
        self.loss = self.loss - new_s
        self.v[:, self.pending], self.w[:, self.pending] = new_v, new_w
        self.s[self.pending] = new_s
        self.pending += 1
        if self.pending == BLOCK:
            self._apply()

    def _apply(self) -> None:
        self.e.addmm_(self.v, self.v.T, alpha=-1)
        cross = self.w - 0.5 * self.s * self.v
        self.f.addmm_(self.v, cross.T, alpha=-1).addmm_(cross, self.v.T, alpha=-1)
        self.pending = 0


def _check(covariances: Sequence[Tensor], importances: Sequence[Tensor], width: int) -> int:
    if not covariances or len(covariances) != len(importances):
        raise InputError(
            f"importances: {len(importances)} matrices for {len(covariances)} covariances, one for "
            "each of one or more is needed"
        )
    shape = covariances[0].shape
    for name, matrices in (("covariances", covariances), ("importances", importances)):
        for k, matrix in enumerate(matrices):
            square = matrix.ndim == 2 and matrix.shape[0] == matrix.shape[1]
            if not square or matrix.shape != shape or not matrix.dtype.is_floating_point:
                raise InputError(
                    f"{name}[{k}]: {matrix.dtype} {list(matrix.shape)} is not a floating-point "
                    f"[O, O] like covariances[0] {list(shape)}"
                )
            ends = matrix.aminmax() if matrix.numel() else ()
            peak = max((abs(float(end)) for end in ends), default=0.0)
            if not peak < float("inf"):
                raise InputError(f"{name}[{k}]: has NaN or infinite entries")
            if _asymmetry(matrix) > 1e-5 * peak:
                raise InputError(f"{name}[{k}]: differs from its transpose")
    total = int(shape[0])
    if isinstance(width, bool) or not isinstance(width, int) or not 1 <= width <= total:
        raise InputError(f"width: {width!r} is not in 1..{total}, the number of features")
    return total


def _asymmetry(matrix: Tensor) -> float:
    """Largest difference from the transpose, found without a copy of the whole."""
    rows = zip(matrix.split(BLOCK), matrix.T.split(BLOCK), strict=True)
    return max((float((a - b).abs().max()) for a, b in rows if a.numel()), default=0.0)
