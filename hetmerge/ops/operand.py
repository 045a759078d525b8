"""Matrices that lie inside tensors: rows and columns found by offsets, nothing copied."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

Offsets = Tensor | range


@dataclass(frozen=True, eq=False)
class Operand:
    """A matrix X [n, d] inside a tensor: ``X[s, f]`` lies at ``samples[s] + features[f]``.

    Offsets count elements from the tensor's first one. Features of a convolution's patches, a mask
    over tokens and channels that are not the last dimension are all of this form.

    Attributes:
        tensor: any strides, floating point.
        samples: [n] int64 on the device of the tensor, or a range: written out only when needed.
        features: [d], likewise.
        sample_stride, feature_stride: the constant step of ``samples`` and ``features`` if they
            begin at 0 and have one, else None.
    """

    tensor: Tensor
    samples: Offsets
    features: Offsets
    sample_stride: int | None
    feature_stride: int | None

    def rows(self, begin: int, end: int) -> Operand:
        """The samples [begin, end) alone."""
        stride = self.sample_stride if begin == 0 else None
        samples = self.sample_table[begin:end]
        return Operand(self.tensor, samples, self.features, stride, self.feature_stride)

    @cached_property
    def sample_table(self) -> Tensor:
        return _table(self.samples, self.tensor.device)

    @cached_property
    def feature_table(self) -> Tensor:
        return _table(self.features, self.tensor.device)

    def dense(self) -> Tensor:
        """The matrix itself, [n, d], gathered."""
        last = 1 + sum(
            (n - 1) * s for n, s in zip(self.tensor.shape, self.tensor.stride(), strict=True)
        )
        flat = self.tensor.as_strided((max(last, 0) if self.tensor.numel() else 0,), (1,))
        return flat[self.sample_table[:, None] + self.feature_table[None, :]]


def constant(value: Tensor, samples: int) -> Operand:
    """One feature that has the same value [1] in every sample."""
    at = torch.zeros(samples, dtype=torch.int64, device=value.device)
    return Operand(value, at, at.new_zeros(1), 0, 1)


def columns_last(view: Tensor, mask: Tensor | None = None) -> Operand:
    """Positions x features of [..., d]; with a bool mask [...], only the positions it names."""
    *shape, width = view.shape
    *strides, step = view.stride()
    device = view.device
    features = _steps(width, step, device)
    if mask is None and _collapses(shape, strides):
        stride = strides[-1] if strides else 1
        samples = _steps(math.prod(shape), stride, device)
        return Operand(view, samples, features, stride, step)
    samples = _offsets(shape, strides, device)
    if mask is not None:
        samples = samples[mask.reshape(-1)]
    return Operand(view, samples, features, None, step)


def selected(matrix: Tensor, rows: Tensor) -> Operand:
    """The given rows [n] of a matrix [m, d]."""
    width, (row, step) = matrix.shape[1], matrix.stride()
    features = torch.arange(width, device=matrix.device) * step
    return Operand(matrix, rows.to(matrix.device) * row, features, None, step)


def patches(
    padded: Tensor,
    kernel: Sequence[int],
    stride: Sequence[int],
    dilation: Sequence[int],
    positions: Tensor,
    grid: Sequence[int],
    groups: int = 1,
) -> list[Operand]:
    """What a convolution reads at some output positions, one operand per group.

    Args:
        padded: [batch, channels, *plane], the input with its padding.
        kernel, stride, dilation: per plane dimension.
        positions: [k] int64 flat positions in the output grid, the same for every image.
        grid: shape of the output plane.

    Returns:
        ``groups`` operands of [batch * k, channels / groups * taps], features ordered as in the
        weight: channel, then tap; samples by image, then position.
    """
    batch, channels, *plane = padded.stride()
    device = padded.device
    steps = [s * jump for s, jump in zip(plane, stride, strict=True)]
    taps = [s * jump for s, jump in zip(plane, dilation, strict=True)]
    at = _offsets(grid, steps, device)[positions.to(device)]
    images = torch.arange(padded.shape[0], device=device) * batch
    samples = (images[:, None] + at[None, :]).reshape(-1)
    window = _offsets(kernel, taps, device)
    planes = torch.arange(padded.shape[1], device=device) * channels
    features = (planes[:, None] + window[None, :]).reshape(groups, -1)
    return [Operand(padded, samples, found, None, None) for found in features]


def _steps(count: int, step: int, device: torch.device) -> Offsets:
    if step == 0:  # which no range has
        return torch.zeros(count, dtype=torch.int64, device=device)
    return range(0, count * step, step)


def _table(offsets: Offsets, device: torch.device) -> Tensor:
    if isinstance(offsets, Tensor):
        return offsets
    return torch.arange(offsets.start, offsets.stop, offsets.step, device=device)


def _collapses(shape: Sequence[int], strides: Sequence[int]) -> bool:
    """Positions in row-major order are one arithmetic progression."""
    pairs = zip(shape[1:], strides[:-1], strides[1:], strict=True)
    return all(size * inner == outer for size, outer, inner in pairs)


def _offsets(shape: Sequence[int], strides: Sequence[int], device: torch.device) -> Tensor:
    """[prod(shape)] int64: where each position of a strided block lies, row-major."""
    total = torch.zeros((), dtype=torch.int64, device=device)
    for size, stride in zip(shape, strides, strict=True):
        total = total.unsqueeze(-1) + torch.arange(size, device=device) * stride
    return total.reshape(-1)
