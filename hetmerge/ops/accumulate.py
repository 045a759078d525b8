"""Sums over one batch of features, and their second moments added to kept blocks, per backend."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations

import torch
from torch import Tensor

from hetmerge.ops import native
from hetmerge.ops.operand import columns_last
from hetmerge.ops.panels import blocks, spans

CHUNK = 4096  # samples that torch gathers, centres and multiplies at a time


@dataclass(frozen=True)
class Samples:
    """The counted samples of one batch: features of every parent along ``dim``.

    ``mask`` is bool and has the shape of the other dimensions.
    """

    features: Sequence[Tensor]
    dim: int
    mask: Tensor | None

    @property
    def sizes(self) -> list[int]:
        return [x.shape[self.dim] for x in self.features]

    def last(self) -> list[Tensor]:
        """Features as [..., d] views."""
        return [x.movedim(self.dim, -1) for x in self.features]


@dataclass(frozen=True)
class Sums:
    """Sums over a batch in float64: of x - shift and of its square, [O] each.

    ``unfit`` is the first parent with a counted NaN or infinity, or -1.
    """

    count: int
    unfit: int
    shift: Tensor
    total: Tensor
    squares: Tensor


class TorchAccumulator:
    """Any device: chunks of samples gathered, centred and multiplied block by block."""

    def __init__(self, samples: Samples) -> None:
        self.samples = samples

    def sums(self, pivot: Tensor | None) -> Sums:
        """Without a pivot the first counted sample is subtracted."""
        views, mask = self.samples.last(), self.samples.mask
        width, device = sum(self.samples.sizes), views[0].device
        shift = torch.zeros(width, dtype=torch.float64, device=device) if pivot is None else pivot
        total, squares = torch.zeros_like(shift), torch.zeros_like(shift)
        count, finite = 0, torch.ones(len(views), dtype=torch.bool, device=device)
        for part in parts(views[0].shape[:-1]):
            pieces = [_select(view, part, mask) for view in views]
            if count == 0 and pivot is None and len(pieces[0]):
                shift = torch.cat([piece[0].double() for piece in pieces])
            count += len(pieces[0])
            for m, (piece, span) in enumerate(zip(pieces, spans(self.samples.sizes), strict=True)):
                centred = piece.double() - shift[span]
                total[span] += centred.sum(0)
                squares[span] += centred.square().sum(0)
                finite[m] &= torch.isfinite(piece).all()
        unfit = (~finite).nonzero().flatten().tolist()
        return Sums(count, unfit[0] if unfit else -1, shift, total, squares)

    def add(self, pivot: Tensor, product: Tensor, within: bool) -> None:
        """Add (x - pivot)(x - pivot)^T to the blocks kept in ``product``."""
        views, mask = self.samples.last(), self.samples.mask
        exact = any(view.dtype == torch.float64 for view in views)
        kept = blocks(product, self.samples.sizes, within)
        for part in parts(views[0].shape[:-1]):
            joint = torch.cat([_select(view, part, mask).double() for view in views], 1) - pivot
            chunk = joint if exact else joint.float()
            for block in kept:
                block.values.add_(chunk[:, block.rows].T @ chunk[:, block.columns])


class TritonAccumulator(TorchAccumulator):
    """GPU: hetmerge.kernels.moments for the products."""

    def add(self, pivot: Tensor, product: Tensor, within: bool) -> None:
        from hetmerge.kernels.moments import launch_cross, launch_moments

        operands = [columns_last(view, self.samples.mask) for view in self.samples.last()]
        centre = pivot.float()
        if within:
            launch_moments(operands, centre, product, torch.zeros_like(pivot))
            return
        pairs = combinations(zip(operands, centre.split(self.samples.sizes), strict=True), 2)
        for block, ((left, p), (right, q)) in zip(
            blocks(product, self.samples.sizes, within), pairs, strict=True
        ):
            launch_cross([left], [right], p, q, block.values)


class NativeAccumulator:
    """CPU: csrc/moments.h."""

    def __init__(self, samples: Samples) -> None:
        from hetmerge import _native

        mask = None if samples.mask is None else native.view(samples.mask)
        self._native = _native
        self.samples = samples
        self.batch = _native.Batch.columns(
            [native.view(x) for x in samples.features], samples.dim, mask
        )

    def sums(self, pivot: Tensor | None) -> Sums:
        given = None if pivot is None else native.view(pivot)
        shift, total, squares = torch.empty(3, self.batch.width, dtype=torch.float64).unbind()
        views = native.view(shift), native.view(total), native.view(squares)
        unfit = self._native.moments_sums(self.batch, given, *views, native.threads())
        return Sums(self.batch.samples, unfit, shift, total, squares)

    def add(self, pivot: Tensor, product: Tensor, within: bool) -> None:
        threads = native.threads()
        if within:
            centre = native.view(pivot)
            self._native.moments_gram(self.batch, centre, native.view(product), threads)
            return
        batches = [self.batch.part(m) for m in range(len(self.samples.features))]
        sides = zip(batches, pivot.split(self.samples.sizes), strict=True)
        pairs = combinations([(batch, native.view(p)) for batch, p in sides], 2)
        for block, ((left, p), (right, q)) in zip(
            blocks(product, self.samples.sizes, within), pairs, strict=True
        ):
            view = native.view(block.values)
            self._native.moments_cross(left, right, p, q, view, threads)


Accumulator = TorchAccumulator | NativeAccumulator
ACCUMULATORS: dict[str, Callable[[Samples], Accumulator]] = {
    "native": NativeAccumulator,
    "torch": TorchAccumulator,
    "triton": TritonAccumulator,
}


def backends(device: torch.device) -> tuple[str, ...]:
    """Native code reads the memory of the CPU only."""
    return tuple(ACCUMULATORS) if device.type == "cpu" else ("torch", "triton")


def parts(shape: Sequence[int]) -> Iterator[tuple[slice, ...]]:
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
            yield from ((part, *rest) for rest in parts(shape[1:]))


def _select(view: Tensor, part: tuple[slice, ...], mask: Tensor | None) -> Tensor:
    """The counted positions of one part: [samples, d]."""
    if mask is None:
        return view[part].reshape(-1, view.shape[-1])
    return view[part][mask[part]]
