"""Streaming moments: mean, covariance and correlation of all parents' features together."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from hetmerge.errors import InputError
from hetmerge.ops.accumulate import ACCUMULATORS, Samples, choose_for
from hetmerge.ops.centring import (
    State,
    best_pivot,
    is_far,
    shift_products,
    shift_sums,
    spread,
    variance_of,
)
from hetmerge.ops.library import register
from hetmerge.ops.panels import Block, blocks, extract, length, spans, symmetric

STEADY = 1e-12  # of the mean: what shifts by the pivot leave of a constant's deviation


class Moments:
    """First and second moments of the features of several parents, updated batch by batch.

    A pivot, the mean of the first batch, is subtracted before products are taken, so means that are
    large against the standard deviation cost no accuracy; it moves when the mean does (by more than
    10 standard deviations). Products of float64 features are taken in float64. All others are taken
    in float32 over runs of at most 512 samples, or chunks of 4096 where torch multiplies, and
    accumulated in float64. bfloat16 features, where all are, keep a pivot of bfloat16 (0 where the
    mean is below 4 standard deviations), so that what is multiplied is a bfloat16 number again:
    exactly where x is between half and twice the pivot, else rounded by 2^-9 of |x - pivot|.
    Moments of disjoint data add up exactly by :meth:`merge`.

    Args:
        sizes: features per parent, 0 allowed; O is their sum.
        dim: the feature dimension of what :meth:`update` gets; negative counts from the end.
        pivot: [O] values to begin with instead of the first batch's mean.
        within: keep the moments of every pair of features, in about 4 O^2 bytes. Otherwise only
            those between different parents, half the work for two equal parents:
            :meth:`correlation_between` and :meth:`variance` are all there is then.
        backend: "native" (CPU), "triton" (CUDA), "torch", or "auto", the best that can run.

    Attributes:
        sizes, dim, within, backend: as given.

    Raises:
        InputError: sizes or pivot are out of range.
    """

    def __init__(
        self,
        sizes: Sequence[int],
        dim: int = 1,
        pivot: Tensor | None = None,
        *,
        within: bool = True,
        backend: str = "auto",
    ) -> None:
        self.sizes = tuple(int(size) for size in sizes)
        if not self.sizes or min(self.sizes) < 0:
            raise InputError(f"sizes: {list(sizes)} is not a list of one or more integers >= 0")
        total = sum(self.sizes)
        if pivot is None:
            # NaN: the first batch decides.
            pivot = torch.full((total,), math.nan, dtype=torch.float64)
        elif pivot.shape != (total,) or not bool(torch.isfinite(pivot).all()):
            raise InputError(f"pivot: {list(pivot.shape)} is not [{total}] finite values")
        self.dim, self.within, self.backend = dim, within, backend
        self._count = torch.zeros((), dtype=torch.int64)
        self._rows = torch.zeros(3, total, dtype=torch.float64, device=pivot.device)
        self._rows[0] = pivot.detach()
        self._product: Tensor | None = None  # of (x - pivot)(x - pivot)^T; made when needed

    @property
    def count(self) -> int:
        """Samples seen."""
        return int(self._count)

    def update(self, *features: Tensor, mask: Tensor | None = None) -> Moments:
        """Add one batch.

        Args:
            features: one per parent, floating point, alike in every dimension but ``dim``, e.g.
                [tokens, d], [batch, channels, height, width], or [batch, tokens, d] with dim=-1.
                Read where they lie: neither concatenated nor copied.
            mask: bool, which positions count; broadcastable to the dimensions other than ``dim``.

        Raises:
            InputError: shapes, dtypes or devices do not fit, or a counted value is NaN or infinite;
                the message names the parent. Nothing is added then.
            BackendError: the backend cannot run on these features.
        """
        expanded = self._check(features, mask)
        device = features[0].device
        if self._product is None:
            size = length(self.sizes, self.within)
            self._product = torch.zeros(size, dtype=torch.float64, device=device)
        if self._rows.device != device or self._product.device != device:
            self._rows, self._product = self._rows.to(device), self._product.to(device)
        _moments_update(
            self._count,
            self._rows,
            self._product,
            [x.detach() for x in features],
            self.dim % features[0].ndim,
            expanded,
            self.within,
            self.backend,
        )
        return self

    def merge(self, other: Moments) -> Moments:
        """Add the data of another instance with the same sizes; ``other`` is not changed.

        Raises:
            InputError: the sizes or what is kept differ.
        """
        if other.sizes != self.sizes:
            raise InputError(f"other: sizes {list(other.sizes)}, allowed are {list(self.sizes)}")
        if other.within != self.within:
            raise InputError(f"other: within={other.within}, allowed is {self.within}")
        if other.count == 0:
            return self
        assert other._product is not None
        if self._product is None:
            if self._state.unset():
                self._state.pivot.copy_(other._state.pivot)
            self._product = torch.zeros_like(other._product)
        device = self._product.device
        self._rows, rows = self._rows.to(device), other._rows.to(device, copy=True)
        shift, sums = rows[0] - self._rows[0], rows[1:]
        self._product += other._product.to(device)
        shift_products(self._blocks(), other.count, sums[0], shift)
        shift_sums(other.count, sums, shift)
        self._rows[1:] += sums
        self._count += other._count
        return self

    def mean(self) -> Tensor:
        """[O] float64."""
        self._filled()
        return self._rows[0] + self._rows[1] / self.count

    def variance(self) -> Tensor:
        """[O] float64, the population variance of each feature; exactly 0 for constant ones."""
        self._filled()
        found = variance_of(self.count, self._rows[1:])
        return torch.where(found > (STEADY * self.mean()).square(), found, 0.0)

    def covariance(self) -> Tensor:
        """[O, O] float64, exactly symmetric; the population covariance (divided by the count).

        Raises:
            InputError: ``within`` is False.
        """
        product = self._filled()
        if not self.within:
            raise InputError(
                "covariance: within=False keeps only what lies between different parents; "
                "use covariance_between or correlation_between"
            )
        # Centred before it is mirrored: the two halves might be rounded in different ways.
        centred = (self._centred(block) for block in self._blocks())
        result = symmetric(centred, sum(self.sizes), product.device)
        result.diagonal().clamp_(min=0.0)
        return result

    def correlation(self) -> Tensor:
        """[O, O] float64 in [-1, 1], exactly symmetric: ``cov / max(std_i * std_j, 1e-7)``.

        The diagonal is computed like every entry, so it is below 1 where the variance is below
        1e-7. Constant features are exactly 0.

        Raises:
            InputError: ``within`` is False.
        """
        result = self.covariance()
        dead = self.variance() == 0
        return _normalised(result, result.diagonal().sqrt(), result.diagonal().sqrt(), dead, dead)

    def covariance_between(self, a: int, b: int) -> Tensor:
        """[d_a, d_b] float64: the covariance of the features of two different parents.

        Raises:
            InputError: ``a`` or ``b`` is not a parent, or both are the same.
        """
        count = len(self.sizes)
        if not (0 <= a < count and 0 <= b < count) or a == b:
            raise InputError(f"a, b: {a} and {b} are not two different parents below {count}")
        if a > b:
            return self.covariance_between(b, a).T
        product = self._filled()
        rows, columns = spans(self.sizes)[a], spans(self.sizes)[b]
        found = extract(self._blocks(), rows, columns, product.device)
        return self._centred(Block(rows, columns, found)).values

    def correlation_between(self, a: int, b: int) -> Tensor:
        """[d_a, d_b] float64: the block of :meth:`correlation` between two different parents."""
        result = self.covariance_between(a, b)
        variance = self.variance()
        left, right = variance[spans(self.sizes)[a]], variance[spans(self.sizes)[b]]
        return _normalised(result, left.sqrt(), right.sqrt(), left == 0, right == 0)

    def state_dict(self) -> dict[str, Any]:
        """All there is to know, for :meth:`from_state_dict`; the tensors are shared, not copied."""
        return {
            "sizes": self.sizes,
            "dim": self.dim,
            "within": self.within,
            "count": self.count,
            "rows": self._rows,
            "product": self._product,
        }

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Any]) -> Moments:
        moments = cls(state["sizes"], state["dim"], within=state["within"])
        moments._count.fill_(int(state["count"]))
        for name in ("rows", "product"):
            value = state[name]
            setattr(moments, f"_{name}", None if value is None else value.clone())
        return moments

    @property
    def _state(self) -> State:
        return State(self._count, self._rows)

    def _blocks(self) -> list[Block]:
        assert self._product is not None
        return blocks(self._product, self.sizes, self.within)

    def _centred(self, block: Block) -> Block:
        """The covariances that belong to a block of products."""
        mean = self._rows[1] / self.count
        values = block.values / self.count
        values.addr_(mean[block.rows], mean[block.columns], alpha=-1.0)
        return Block(block.rows, block.columns, values)

    def _filled(self) -> Tensor:
        if self.count == 0 or self._product is None:
            raise InputError("Moments: no sample was added, one or more are needed")
        return self._product

    def _check(self, features: Sequence[Tensor], mask: Tensor | None) -> Tensor | None:
        """The mask expanded to the dimensions other than ``dim``."""
        if len(features) != len(self.sizes):
            raise InputError(f"features: {len(features)} tensors for {len(self.sizes)} parents")
        first, positions = features[0], torch.Size()
        for parent, (x, size) in enumerate(zip(features, self.sizes, strict=True)):
            if not x.dtype.is_floating_point or x.dtype not in DTYPES:
                raise InputError(
                    f"features of parent {parent}: {x.dtype} is not floating point of 16 to 64 bits"
                )
            if not -x.ndim <= self.dim < x.ndim or x.ndim < 2 or x.shape[self.dim] != size:
                raise InputError(
                    f"features of parent {parent}: shape {list(x.shape)} has not {size} features "
                    f"in dimension {self.dim}"
                )
            dim = self.dim % x.ndim
            found = x.shape[:dim] + x.shape[dim + 1 :]
            positions = positions if parent else found
            if found != positions or x.device != first.device:
                raise InputError(
                    f"features of parent {parent}: {list(found)} positions on {x.device}, but "
                    f"parent 0 has {list(positions)} on {first.device}"
                )
        if mask is None:
            return None
        fits = mask.ndim <= len(positions) and all(
            m in (1, p) for m, p in zip(reversed(mask.shape), reversed(positions), strict=False)
        )
        if not fits or mask.dtype != torch.bool:
            raise InputError(
                f"mask: {mask.dtype} {list(mask.shape)} is not bool and broadcastable to "
                f"{list(positions)}"
            )
        return mask.to(first.device).expand(positions)


DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def _normalised(
    covariance: Tensor, left: Tensor, right: Tensor, dead_left: Tensor, dead_right: Tensor
) -> Tensor:
    """Divided in place by ``max(std_i * std_j, 1e-7)``, 0 for dead features."""
    for row, std in zip(covariance.split(512), left.split(512), strict=True):
        row /= torch.outer(std, right).clamp_(min=1e-7)
    covariance[dead_left] = 0.0
    covariance[:, dead_right] = 0.0
    return covariance.clamp_(-1.0, 1.0)


def _update(
    count: Tensor,
    rows: Tensor,
    product: Tensor,
    features: list[Tensor],
    dim: int,
    mask: Tensor | None,
    within: bool,
    backend: str,
) -> None:
    batch = ACCUMULATORS[choose_for(features, backend)](Samples(features, dim, mask))
    state = State(count, rows)
    found = batch.sums(state)
    if found is not None:
        if found.count == 0:
            return
        finite, moves = batch.judge(state, found)
        if not all(finite):
            raise InputError(
                f"features of parent {finite.index(False)}: NaN or infinite values, "
                "only finite ones are allowed"
            )
        before, unset = int(count), state.unset()
        if moves or unset:
            mean, variance = spread(state, found)
            far = is_far(mean, variance)
            best = best_pivot(found.shift + mean, variance, {x.dtype for x in features})
            pivot = best if unset else torch.where(far, best, found.shift)
            shift = found.shift - pivot
            shift_sums(found.count, found.values, shift)
            if before:
                kept = blocks(product, [x.shape[dim] for x in features], within)
                shift_products(kept, before, state.sums[0], shift)
                shift_sums(before, state.sums, shift)
            state.pivot.copy_(pivot)
        state.sums.add_(found.values)
        count += found.count
    batch.add(rows, product, within)


def _update_fake(*_: object) -> None:
    return None


_moments_update = register(
    "moments_update(Tensor(a!) count, Tensor(b!) rows, Tensor(c!) product, Tensor[] features, "
    "int dim, Tensor? mask, bool within, str backend) -> ()",
    _update,
    _update_fake,
)
