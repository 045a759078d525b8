"""Sums over one batch of features, and their second moments added to kept blocks, per backend."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations

import torch
from torch import Tensor

from hetmerge.ops import native
from hetmerge.ops.backend import available, choose
from hetmerge.ops.centring import FAR, State, Sums, judge
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


class TorchAccumulator:
    """Any device: chunks of samples gathered, centred and multiplied block by block."""

    judge = staticmethod(judge)

    def __init__(self, samples: Samples) -> None:
        self.samples = samples

    def sums(self, state: State) -> Sums | None:
        """Sums about the pivot, or about the first counted sample where there is none yet.

        None: they were added to the state already, for the pivot is near.
        """
        views, mask = self.samples.last(), self.samples.mask
        unset = state.unset()
        shift = torch.zeros_like(state.pivot) if unset else state.pivot
        values = torch.zeros_like(state.sums)
        count, finite = 0, torch.ones(len(views), dtype=torch.bool, device=shift.device)
        for part in parts(views[0].shape[:-1]):
            pieces = [_select(view, part, mask) for view in views]
            if count == 0 and unset and len(pieces[0]):
                shift = torch.cat([piece[0].double() for piece in pieces])
            count += len(pieces[0])
            for m, (piece, span) in enumerate(zip(pieces, spans(self.samples.sizes), strict=True)):
                centred = piece.double() - shift[span]
                values[0, span] += centred.sum(0)
                values[1, span] += centred.square().sum(0)
                finite[m] &= torch.isfinite(piece).all()
        return Sums(count, finite, shift, values)

    def add(self, rows: Tensor, product: Tensor, within: bool) -> None:
        """Add (x - pivot)(x - pivot)^T to the blocks kept in ``product``; ``rows``: see State."""
        views, mask = self.samples.last(), self.samples.mask
        exact = any(view.dtype == torch.float64 for view in views)
        kept = blocks(product, self.samples.sizes, within)
        for part in parts(views[0].shape[:-1]):
            joint = torch.cat([_select(view, part, mask).double() for view in views], 1) - rows[0]
            chunk = joint if exact else joint.float()
            for block in kept:
                block.values.add_(chunk[:, block.rows].T @ chunk[:, block.columns])


class TritonAccumulator:
    """GPU: hetmerge.kernels."""

    def __init__(self, samples: Samples) -> None:
        self.sizes = samples.sizes
        self.operands = [columns_last(view, samples.mask) for view in samples.last()]

    def sums(self, state: State) -> Sums:
        from hetmerge.kernels.sums import launch_sums

        count = len(self.operands[0].samples)
        if count == 0:
            found = state.pivot, torch.zeros_like(state.sums)
        else:
            found = launch_sums(self.operands, None if state.unset() else state.pivot)
        return Sums(count, None, *found)

    def judge(self, state: State, found: Sums) -> tuple[list[bool], bool]:
        from hetmerge.kernels.sums import launch_judge

        count = int(state.count) + found.count
        flags = launch_judge(state.sums, found.values, count).cpu()
        finite = [bool((part & 1).all()) for part in flags.split(self.sizes)]
        return finite, bool((flags > 1).any())

    def add(self, rows: Tensor, product: Tensor, within: bool) -> None:
        from hetmerge.kernels.moments import launch_cross, launch_moments

        pivot = rows[0].float()
        if within:
            launch_moments(self.operands, pivot, product)
            return
        pairs = combinations(zip(self.operands, pivot.split(self.sizes), strict=True), 2)
        for block, ((left, p), (right, q)) in zip(
            blocks(product, self.sizes, within), pairs, strict=True
        ):
            launch_cross([left], [right], p, q, block.values)


class NativeAccumulator:
    """CPU: csrc/moments.h."""

    judge = staticmethod(judge)

    def __init__(self, samples: Samples) -> None:
        from hetmerge import _native

        mask = None if samples.mask is None else native.view(samples.mask)
        self._native = _native
        self.samples = samples
        self.batch = _native.Batch.columns(
            [native.view(x) for x in samples.features], samples.dim, mask
        )

    def sums(self, state: State) -> Sums | None:
        unfit, found = self._native.moments_sums(
            self.batch, native.view(state.count), native.view(state.rows), FAR, native.threads()
        )
        if found is None and unfit < 0:
            return None
        finite = torch.arange(len(self.samples.features)) != unfit
        if found is None:
            return Sums(self.batch.samples, finite, state.pivot, torch.zeros_like(state.sums))
        shift, *values = (torch.from_numpy(row) for row in found)
        return Sums(self.batch.samples, finite, shift, torch.stack(values))

    def add(self, rows: Tensor, product: Tensor, within: bool) -> None:
        threads = native.threads()
        if within:
            # The pivot is the first of the rows.
            first = native.view(rows)
            self._native.moments_gram(self.batch, first, native.view(product), threads)
            return
        batches = [self.batch.part(m) for m in range(len(self.samples.features))]
        sides = zip(batches, rows[0].split(self.samples.sizes), strict=True)
        pairs = combinations([(batch, native.view(p)) for batch, p in sides], 2)
        for block, ((left, p), (right, q)) in zip(
            blocks(product, self.samples.sizes, within), pairs, strict=True
        ):
            view = native.view(block.values)
            self._native.moments_cross(left, right, p, q, view, threads)


Accumulator = TorchAccumulator | TritonAccumulator | NativeAccumulator
ACCUMULATORS: dict[str, Callable[[Samples], Accumulator]] = {
    "native": NativeAccumulator,
    "torch": TorchAccumulator,
    "triton": TritonAccumulator,
}


def backends(device: torch.device) -> tuple[str, ...]:
    """Native code reads the memory of the CPU only."""
    return tuple(ACCUMULATORS) if device.type == "cpu" else ("torch", "triton")


def choose_for(tensors: Sequence[Tensor], request: str) -> str:
    """The backend for features in ``tensors``, all on one device."""
    device = tensors[0].device
    found = dict(available(device, *backends(device)))
    if any(x.dtype == torch.float64 for x in tensors):
        found["triton"] = "its products are float32, and a parent is float64"
    return choose("moments", request, found)


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
        return view[part].flatten(0, -2)
    return view[part][mask[part]]
