"""Selection: the real features that best explain all of them, as the next layers see it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
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


@dataclass(frozen=True, eq=False)
class Gram:
    """The matrix R'R by its rows R [r, size], where they are fewer than its columns."""

    rows: Tensor

    def whole(self) -> Tensor:
        """R'R [size, size]."""
        return self.rows.T @ self.rows


Importance = Tensor | Sequence[Tensor | Gram]  # a matrix, or the square blocks on its diagonal


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
    ``3 width O^2`` operations per place, after those of C Q C (``O^2`` times the rows of Q, and
    those of C Q); ``8 O^2`` bytes per place besides what is given, all in float64.

    Args:
        covariances: [O, O] per place where the features are observed (the blocks along a residual
            stream), symmetric positive semidefinite; one tensor for one place.
        importances: Q [O, O] of each place, symmetric positive semidefinite, such as the sum of
            W'W of the layers that read the features; or the square blocks on its diagonal, one
            after the other, where the rest of it is zero: matrices, or :class:`Gram`. They are
            asked for one at a time, once, and not kept.
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

    def __init__(self, like: Tensor) -> None:
        """Zeros, of the shape of a whole matrix, in one piece of memory that is given back."""
        shapes = [tuple(strip.shape) for strip in _strips(like)]
        buffer = like.new_zeros(sum(rows * columns for rows, columns in shapes))
        pieces = buffer.split([rows * columns for rows, columns in shapes])
        self.strips = [piece.view(shape) for piece, shape in zip(pieces, shapes, strict=True)]

    def diagonal(self) -> Tensor:
        return torch.cat([strip.diagonal() for strip in self.strips])

    def column(self, u: int) -> Tensor:
        """[O], of which the part behind the strip that holds row u is read along that row."""
        own, at = divmod(u, STRIP)
        above = [strip[:, u - k * STRIP] for k, strip in enumerate(self.strips[:own])]
        return torch.cat([*above, self.strips[own][at]])

    def add(self, left: Tensor, right: Tensor, times: int = 1) -> None:
        """``times left right`` of [O, r] and [r, O], which is symmetric."""
        for k, strip in enumerate(self.strips):
            start = k * STRIP
            strip.addmm_(left[start : start + STRIP], right[:, start:], alpha=times)


class _Place:
    """E and F = E Q E of one place, behind by the choices of the current block."""

    def __init__(self, k: int, covariance: Tensor, importance: Importance) -> None:
        wide = covariance.to(torch.float64)
        self.loss = wide.new_zeros(())
        self.f = _Triangle(wide)
        for span, block in _blocks_of(k, importance, len(wide)):
            self._see(wide, span, block)
        self.e = _Triangle(wide)
        for strip, given in zip(self.e.strips, _strips(wide), strict=True):
            strip.copy_(given)
        self.left, self.gain = self.e.diagonal(), self.f.diagonal()
        self.variance = self.left.clamp_min(0.0)
        # E -= V V', F -= V W' + W V' - V diag(s) V' are still to be applied.
        self.v = wide.new_zeros(len(wide), BLOCK)
        self.w = torch.zeros_like(self.v)
        self.s = wide.new_zeros(BLOCK)
        self.pending = 0

    def _see(self, wide: Tensor, span: slice, block: Tensor | Gram) -> None:
        """Add C[:, span] Q C[span, :] of one block to F, and tr(Q C) to the loss."""
        if isinstance(block, Gram):
            rows = block.rows.to(wide)
            seen = rows @ wide[span]
            self.loss += (seen[:, span] * rows).sum()
            self.f.add(seen.T, seen)
            return
        q = block.to(wide)
        pairs = zip(wide[span, span].split(STRIP), q.split(STRIP), strict=True)
        self.loss += sum((a * b).sum() for a, b in pairs)
        for k, strip in enumerate(self.f.strips):
            start = k * STRIP
            strip.addmm_(wide[start : start + STRIP, span] @ q, wide[span, start:])

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
        self.e.add(self.v, self.v.T, -1)
        cross = self.w - 0.5 * self.s * self.v
        self.f.add(torch.cat([self.v, cross], 1), torch.cat([cross, self.v], 1).T, -1)
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


def _strips(matrix: Tensor) -> list[Tensor]:
    """Views of rows that lie together, from their first column on."""
    return [matrix[i : i + STRIP, i:] for i in range(0, len(matrix), STRIP)]


def _blocks_of(k: int, importance: Importance, total: int) -> Iterator[tuple[slice, Tensor | Gram]]:
    """The blocks of an importance one by one, and where each stands."""
    if isinstance(importance, Tensor):
        _check_matrix(f"importances[{k}]", importance, total)
        yield slice(0, total), importance
        return
    end = 0
    for i, block in enumerate(importance):
        name = f"importances[{k}][{i}]"
        if isinstance(block, Gram):
            _check_rows(name, block.rows)
            size = block.rows.shape[1]
        else:
            size = len(block) if block.ndim else 0
            _check_matrix(name, block, size)
        start, end = end, end + size
        if end > total:
            break
        yield slice(start, end), block
    if end != total:
        raise InputError(
            f"importances[{k}]: its {len(importance)} blocks do not have the {total} rows of "
            "covariances[0] together"
        )


def _check_matrix(name: str, matrix: Tensor, size: int) -> None:
    if tuple(matrix.shape) != (size, size) or not matrix.dtype.is_floating_point:
        raise InputError(
            f"{name}: {matrix.dtype} {list(matrix.shape)} is not a floating-point matrix "
            f"{[size, size]}"
        )
    if _asymmetry(matrix) > 1e-5 * _peak(name, matrix):
        raise InputError(f"{name}: differs from its transpose")


def _check_rows(name: str, rows: Tensor) -> None:
    if rows.ndim != 2 or not rows.dtype.is_floating_point:
        raise InputError(f"{name}: {rows.dtype} {list(rows.shape)} is no floating-point matrix")
    _peak(name, rows)


def _peak(name: str, matrix: Tensor) -> float:
    ends = matrix.aminmax() if matrix.numel() else ()
    peak = max((abs(float(end)) for end in ends), default=0.0)
    if not peak < float("inf"):
        raise InputError(f"{name}: has NaN or infinite entries")
    return peak


def _asymmetry(matrix: Tensor) -> float:
    """Largest difference from the transpose, found without a copy of the whole."""
    rows = zip(matrix.split(BLOCK), matrix.T.split(BLOCK), strict=True)
    return max((float((a - b).abs().max()) for a, b in rows if a.numel()), default=0.0)
