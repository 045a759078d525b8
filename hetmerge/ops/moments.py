"""Streaming moments: mean, covariance and correlation of all parents' features together."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from hetmerge.errors import InputError

CHUNK = 4096  # samples gathered, centred and multiplied at a time
PANEL = 512  # columns per block of the product; only blocks on and above the diagonal are computed


class Moments:
    """First and second moments of the features of several parents, updated batch by batch.

    A fixed pivot, the mean of the first batch, is subtracted before products are taken, so means
    that are large against the standard deviation cost no accuracy. Products run in the dtype of
    the features (float16 and bfloat16: in float32) over at most 4096 samples and are accumulated in
    float64. Moments of disjoint data add up exactly by :meth:`merge`.

    Args:
        sizes: features per parent, 0 allowed; O is their sum.
        dim: the feature dimension of what :meth:`update` gets; negative counts from the end.
        pivot: [O] values to subtract instead of the first batch's mean.

    Attributes:
        sizes, dim: as given.
        count: samples seen.

    Raises:
        InputError: sizes or pivot are out of range.
    """

    def __init__(self, sizes: Sequence[int], dim: int = 1, pivot: Tensor | None = None) -> None:
        self.sizes = tuple(int(size) for size in sizes)
        if not self.sizes or min(self.sizes) < 0:
            raise InputError(f"sizes: {list(sizes)} is not a list of one or more integers >= 0")
        total = sum(self.sizes)
        if pivot is not None:
            pivot = pivot.detach().to(torch.float64, copy=True)
            if pivot.shape != (total,) or not bool(torch.isfinite(pivot).all()):
                raise InputError(f"pivot: {list(pivot.shape)} is not [{total}] finite values")
        self.dim = dim
        self.count = 0
        self._pivot = pivot
        self._exact = True  # every product so far was taken in float64
        device = None if pivot is None else pivot.device
        self._sum = torch.zeros(total, dtype=torch.float64, device=device)  # of x - pivot
        # Of (x - pivot)(x - pivot)^T, valid on and above the diagonal panels; made when needed.
        self._product: Tensor | None = None

    def update(self, *features: Tensor, mask: Tensor | None = None) -> Moments:
        """Add one batch.

        Args:
            features: one per parent, floating point, alike in every dimension but ``dim``, e.g.
                [tokens, d], [batch, channels, height, width], or [batch, tokens, d] with dim=-1.
                Never concatenated, and copied only in chunks.
            mask: bool, which positions count; broadcastable to the dimensions other than ``dim``.

        Raises:
            InputError: shapes, dtypes or devices do not fit, or a counted value is NaN or infinite;
                the message names the parent. Nothing is added then.
        """
        views, positions = self._check(features, mask)
        parts = list(_parts(views[0].shape[:-1]))
        for parent, (x, view) in enumerate(zip(features, views, strict=True)):
            if positions is None:
                _check_finite(parent, x.detach())
                continue
            for part in parts:
                _check_finite(parent, _select(view, part, positions))
        dtype = torch.float32
        if any(view.dtype == torch.float64 for view in views):
            dtype = torch.float64
        device = views[0].device
        if self._pivot is None:
            seen = _count(views[0]) if positions is None else int(positions.sum())
            if seen == 0:
                return self
            mean = torch.zeros_like(self._sum, device=device)
            for part in parts:
                for view, span in zip(views, self._spans(), strict=True):
                    piece = _select(view, part, positions)
                    over = tuple(range(piece.ndim - 1))
                    mean[span] += piece.sum(over, dtype=torch.float64)
            # Rounded, so that float32 features can be centred in float32.
            self._pivot = (mean / seen).to(dtype).to(torch.float64)
        self._sum = self._sum.to(device)
        self._pivot = self._pivot.to(device)
        if self._product is None:
            self._product = torch.zeros(
                len(self._sum), len(self._sum), dtype=torch.float64, device=device
            )
        self._product = self._product.to(device)
        self._exact &= dtype == torch.float64
        for part in parts:
            self._add(self._centred([_select(v, part, positions) for v in views], dtype))
        return self

    def merge(self, other: Moments) -> Moments:
        """Add the data of another instance with the same sizes; ``other`` is not changed.

        Raises:
            InputError: the sizes differ.
        """
        if other.sizes != self.sizes:
            raise InputError(f"other: sizes {list(other.sizes)}, allowed are {list(self.sizes)}")
        if other.count == 0:
            return self
        assert other._product is not None
        assert other._pivot is not None
        if self._product is None or self._pivot is None:
            if self._pivot is None:
                self._pivot = other._pivot.clone()
            self._sum = torch.zeros_like(other._sum)
            self._product = torch.zeros_like(other._product)
        device = self._product.device
        shift = other._pivot.to(device) - self._pivot.to(device)
        total = other._sum.to(device)
        # x - p = (x - q) + (q - p): the outer products of the shift, split evenly on both sides.
        half = total + shift * (other.count / 2)
        self._product += other._product.to(device)
        self._product.addr_(shift, half).addr_(half, shift)
        self._sum = self._sum.to(device) + total + shift * other.count
        self.count += other.count
        self._exact &= other._exact
        return self

    def mean(self) -> Tensor:
        """[O] float64."""
        _, pivot = self._filled()
        return pivot + self._sum / self.count

    def covariance(self) -> Tensor:
        """[O, O] float64, exactly symmetric; the population covariance (divided by the count)."""
        product, _ = self._filled()
        result = product / self.count
        mean = self._sum / self.count
        result.addr_(mean, mean, alpha=-1.0)
        result.diagonal().clamp_(min=0.0)
        for begin in range(0, len(result), PANEL):
            end = begin + PANEL
            result[end:, begin:end] = result[begin:end, end:].T
            block = result[begin:end, begin:end]
            block.copy_(block.triu() + block.triu(1).T)
        return result

    def correlation(self) -> Tensor:
        """[O, O] float64 in [-1, 1], exactly symmetric: ``cov / max(std_i * std_j, 1e-7)``.

        The diagonal is computed like every entry, so it is below 1 where the variance is below
        1e-7. Dead features, whose variance is lost in the rounding of the products, are exactly 0.
        """
        result = self.covariance()
        product, _ = self._filled()
        noise = product.diagonal() / self.count * (1e-13 if self._exact else 1e-6)
        variance = result.diagonal().clone()
        dead = variance <= noise
        std = variance.sqrt()
        for begin in range(0, len(result), PANEL):
            rows = slice(begin, begin + PANEL)
            result[rows] /= torch.outer(std[rows], std).clamp_(min=1e-7)
        result[dead] = 0.0
        result[:, dead] = 0.0
        return result.clamp_(-1.0, 1.0)

    def state_dict(self) -> dict[str, Any]:
        """All there is to know, for :meth:`from_state_dict`; the tensors are shared, not copied."""
        return {
            "sizes": self.sizes,
            "dim": self.dim,
            "count": self.count,
            "exact": self._exact,
            "pivot": self._pivot,
            "sum": self._sum,
            "product": self._product,
        }

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Any]) -> Moments:
        moments = cls(state["sizes"], state["dim"])
        moments.count = int(state["count"])
        moments._exact = bool(state["exact"])
        for name in ("pivot", "sum", "product"):
            value = state[name]
            setattr(moments, f"_{name}", None if value is None else value.clone())
        return moments

    def _filled(self) -> tuple[Tensor, Tensor]:
        if self.count == 0 or self._product is None or self._pivot is None:
            raise InputError("Moments: no sample was added, one or more are needed")
        return self._product, self._pivot

    def _spans(self) -> list[slice]:
        ends = [sum(self.sizes[: m + 1]) for m in range(len(self.sizes))]
        return [slice(end - size, end) for end, size in zip(ends, self.sizes, strict=True)]

    def _centred(self, pieces: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
        """[samples, O], features of all parents minus the pivot, in ``dtype``."""
        assert self._pivot is not None
        pivot = self._pivot.to(dtype)
        if not torch.equal(pivot.to(torch.float64), self._pivot):
            pivot = self._pivot
        shape = pieces[0].shape[:-1]
        total = sum(self.sizes)
        # Stored the way the features lie, so that the copy runs along memory.
        last = all(piece.stride(-1) == 1 for piece in pieces)
        flat = torch.empty(
            (math.prod(shape), total) if last else (total, math.prod(shape)),
            dtype=dtype,
            device=pivot.device,
        )
        chunk = flat.view(*shape, total) if last else flat.view(total, *shape).movedim(0, -1)
        for piece, span in zip(pieces, self._spans(), strict=True):
            if piece.dtype == dtype and pivot.dtype == dtype:
                torch.sub(piece, pivot[span], out=chunk[..., span])
            else:
                wide = torch.promote_types(dtype, pivot.dtype)
                chunk[..., span] = piece.to(wide) - pivot[span]
        return flat if last else flat.T

    def _add(self, chunk: Tensor) -> None:
        assert self._product is not None
        self.count += len(chunk)
        self._sum += _sum_rows(chunk)
        total = len(self._sum)
        for i in range(0, total, PANEL):
            left = chunk[:, i : i + PANEL].T
            for j in range(i, total, PANEL):
                self._product[i : i + PANEL, j : j + PANEL] += left @ chunk[:, j : j + PANEL]

    def _check(
        self, features: Sequence[Tensor], mask: Tensor | None
    ) -> tuple[list[Tensor], Tensor | None]:
        """Features as [..., d_m] views, and the mask expanded to the other dimensions."""
        if len(features) != len(self.sizes):
            raise InputError(f"features: {len(features)} tensors for {len(self.sizes)} parents")
        views = []
        for parent, (x, size) in enumerate(zip(features, self.sizes, strict=True)):
            if not x.dtype.is_floating_point:
                raise InputError(f"features of parent {parent}: {x.dtype} is not floating point")
            if not -x.ndim <= self.dim < x.ndim or x.ndim < 2 or x.shape[self.dim] != size:
                raise InputError(
                    f"features of parent {parent}: shape {list(x.shape)} has not {size} features "
                    f"in dimension {self.dim}"
                )
            views.append(x.detach().movedim(self.dim, -1))
            first = views[0]
            if views[-1].shape[:-1] != first.shape[:-1] or x.device != first.device:
                raise InputError(
                    f"features of parent {parent}: {list(views[-1].shape[:-1])} positions on "
                    f"{x.device}, but parent 0 has {list(first.shape[:-1])} on {first.device}"
                )
        if mask is None:
            return views, None
        shape = views[0].shape[:-1]
        try:
            expanded = mask.expand(shape)
        except RuntimeError:
            expanded = None
        if expanded is None or mask.dtype != torch.bool:
            raise InputError(
                f"mask: {mask.dtype} {list(mask.shape)} is not bool and broadcastable to "
                f"{list(shape)}"
            )
        return views, expanded.to(views[0].device)


def _parts(shape: Sequence[int]) -> Iterator[tuple[slice, ...]]:
    """Index ranges that cover ``shape`` with at most CHUNK positions each."""
    if math.prod(shape) == 0:
        return
    inner = math.prod(shape[1:])
    step = max(1, CHUNK // inner)
    for begin in range(0, shape[0], step):
        part = slice(begin, begin + step)
        if inner <= CHUNK:
            yield (part, *(slice(None) for _ in shape[1:]))
        else:
            yield from ((part, *rest) for rest in _parts(shape[1:]))


def _select(view: Tensor, part: tuple[slice, ...], mask: Tensor | None) -> Tensor:
    """The counted positions of one part: [samples, d], or [..., d] without a mask."""
    return view[part] if mask is None else view[part][mask[part]]


def _sum_rows(chunk: Tensor) -> Tensor:
    """[samples, O] -> [O] float64. Short runs in the dtype given: converting each entry is slow."""
    runs = len(chunk) // 64
    total = chunk[: runs * 64].view(runs, 64, chunk.shape[1]).sum(1).double().sum(0)
    return total + chunk[runs * 64 :].double().sum(0)


def _count(view: Tensor) -> int:
    return math.prod(view.shape[:-1])


def _check_finite(parent: int, piece: Tensor) -> None:
    if piece.numel() == 0:
        return
    low, high = piece.aminmax()
    if not bool(torch.isfinite(low) & torch.isfinite(high)):
        raise InputError(
            f"features of parent {parent}: NaN or infinite values, only finite ones are allowed"
        )
