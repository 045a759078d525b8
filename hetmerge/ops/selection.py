"""Selection: the real features that best explain all of them, as the next layers see it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hetmerge.errors import InputError

BLOCK = 64  # features chosen between two updates of the whole matrices
STRIP = 512  # rows of them that lie together
# Share of its variance below which a feature counts as explained by the chosen ones. A lower floor
# only where no feature is left above the one before: what little is left may be noise.
FLOORS = (1e-4, 1e-8, 1e-12)


Importance = Tensor | Sequence[Tensor]  # a matrix, or the square blocks on its diagonal


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
    importances: Importance | Sequence[Importance],
    width: int,
) -> Selection:
    """Choose ``width`` features greedily so that the others can be read off them.

    Least-squares-compensated pruning. With E = C - C_:S C_SS^-1 C_S:, the covariance of what a
    linear read-off of the chosen features S misses, and Q the weight of errors, the loss is
    ``sum over places of tr(Q E)``; every step takes the feature u with the largest gain
    ``(E Q E)_uu / E_uu``. Ties go to the smallest index, up to rounding.

    Pivoted Cholesky in blocks: E and F = E Q E change by rank one and two with each choice, so a
    choice needs one column of each, and their upper triangles are touched once in 64 choices. About
    ``3 width O^2`` operations per place, after ``O^3`` and those of C Q; ``8 O^2`` bytes per place
    besides what is given, all in float64.

    Args:
        covariances: [O, O] per place where the features are observed (the blocks along a residual
            stream), symmetric positive semidefinite; one tensor for one place.
        importances: Q [O, O] of each place, symmetric positive semidefinite, such as the sum of
            W'W of the layers that read the features; or the square blocks on its diagonal, one
            after the other, where the rest of it is zero. They are asked for once and not kept.
        width: features to choose, 1 to O.

    Raises:
        InputError: shapes differ, a matrix is not square, finite and symmetric, or width is out of
            range.
    """
    single = isinstance(covariances, Tensor)
    listed = [covariances] if isinstance(covariances, Tensor) else list(covariances)
    given: list[Any] = [importances] if single else list(importances)
    total = _check(listed, len(given), width)
    places = [_Place(k, *place) for k, place in enumerate(zip(listed, given, strict=True))]
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


class _Triangle:
    """A symmetric [O, O] matrix; of every strip of rows, the columns from its first row on."""

    def __init__(self, strips: Sequence[Tensor]) -> None:
        self.strips = strips

    def diagonal(self) -> Tensor:
        return torch.cat([strip.diagonal() for strip in self.strips])

    def column(self, u: int) -> Tensor:
        """[O], of which the part behind the strip that holds row u is read along that row."""
        own, at = divmod(u, STRIP)
        above = [strip[:, u - k * STRIP] for k, strip in enumerate(self.strips[:own])]
        return torch.cat([*above, self.strips[own][at]])

    def subtract(self, left: Tensor, right: Tensor) -> None:
        """``left right'``, which is symmetric."""
        for k, strip in enumerate(self.strips):
            rows = left[k * STRIP :][:STRIP]
            strip.addmm_(rows, right[k * STRIP :].T, alpha=-1)


class _Place:
    """E and F = E Q E of one place, behind by the choices of the current block."""

    def __init__(self, k: int, covariance: Tensor, importance: Importance) -> None:
        wide = covariance.to(torch.float64)
        self.loss = wide.new_zeros(())
        blocks = [q.to(wide) for q in _checked(k, importance, len(wide))]
        sizes = [len(q) for q in blocks]
        starts = range(0, len(wide), STRIP)
        strips = []
        for start in starts:
            parts = zip(wide[start : start + STRIP].split(sizes, 1), blocks, strict=True)
            seen = torch.cat([part @ q for part, q in parts], 1)
            self.loss += seen[:, start:].diagonal().sum()
            strips.append(seen @ wide[:, start:])
        blocks.clear()
        self.f = _Triangle(strips)
        self.e = _Triangle([wide[start : start + STRIP, start:].clone() for start in starts])
        self.left, self.gain = self.e.diagonal(), self.f.diagonal()
        self.variance = self.left.clamp_min(0.0)
        # E -= V V', F -= V W' + W V' - V diag(s) V' are still to be applied.
        self.v = wide.new_zeros(len(wide), BLOCK)
        self.w = torch.zeros_like(self.v)
        self.s = wide.new_zeros(BLOCK)
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
        new_v = (self.e.column(u) - v @ v[u]) * scale
        new_w = (self.f.column(u) - v @ (w[u] - s * v[u]) - w @ v[u]) * scale
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
        self.e.subtract(self.v, self.v)
        cross = self.w - 0.5 * self.s * self.v
        self.f.subtract(torch.cat([self.v, cross], 1), torch.cat([cross, self.v], 1))
        self.pending = 0


def _check(covariances: Sequence[Tensor], importances: int, width: int) -> int:
    if not covariances or len(covariances) != importances:
        raise InputError(
            f"importances: {importances} matrices for {len(covariances)} covariances, one for each "
            "of one or more is needed"
        )
    total = len(covariances[0]) if covariances[0].ndim else 0
    for k, covariance in enumerate(covariances):
        _check_matrix(f"covariances[{k}]", covariance, total)
    if isinstance(width, bool) or not isinstance(width, int) or not 1 <= width <= total:
        raise InputError(f"width: {width!r} is not in 1..{total}, the number of features")
    return total


def _checked(k: int, importance: Importance, total: int) -> list[Tensor]:
    """The blocks of an importance; one where it is a whole matrix."""
    if isinstance(importance, Tensor):
        _check_matrix(f"importances[{k}]", importance, total)
        return [importance]
    blocks = list(importance)
    for i, block in enumerate(blocks):
        _check_matrix(f"importances[{k}][{i}]", block, len(block) if block.ndim else 0)
    if (found := sum(map(len, blocks))) != total:
        raise InputError(
            f"importances[{k}]: its {len(blocks)} blocks have {found} rows together; "
            f"covariances[0] has {total}"
        )
    return blocks


def _check_matrix(name: str, matrix: Tensor, size: int) -> None:
    if tuple(matrix.shape) != (size, size) or not matrix.dtype.is_floating_point:
        raise InputError(
            f"{name}: {matrix.dtype} {list(matrix.shape)} is not a floating-point matrix "
            f"{[size, size]}"
        )
    ends = matrix.aminmax() if matrix.numel() else ()
    peak = max((abs(float(end)) for end in ends), default=0.0)
    if not peak < float("inf"):
        raise InputError(f"{name}: has NaN or infinite entries")
    if _asymmetry(matrix) > 1e-5 * peak:
        raise InputError(f"{name}: differs from its transpose")


def _asymmetry(matrix: Tensor) -> float:
    """Largest difference from the transpose, found without a copy of the whole."""
    rows = zip(matrix.split(BLOCK), matrix.T.split(BLOCK), strict=True)
    return max((float((a - b).abs().max()) for a, b in rows if a.numel()), default=0.0)
