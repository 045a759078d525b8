"""What runs inside ``torch.ops.hetmerge.zip``: checks of values, then the backend."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import islice

import numpy as np
import torch
from torch import Tensor

from hetmerge.errors import BackendError, InputError
from hetmerge.ops.backend import available, choose
from hetmerge.ops.native import threads, view

ALGORITHMS = ("reference", "row-best", "row-best+chain", "rounds")

# How far a similarity may be from its transpose, relative to its largest magnitude. Matrix
# products of both triangles round differently; anything beyond that is a different matrix.
SYMMETRY = {torch.float32: 1e-5, torch.float64: 1e-12}

Outcome = tuple[Tensor, Tensor, list[int]]  # labels, heights, [relaxed, rescans, algorithm]


def solve(
    similarities: list[Tensor],
    sizes: Sequence[int],
    parents: Sequence[int],
    widths: Sequence[int],
    alpha: float,
    beta: float,
    backend: str,
    overwrite: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Labels and heights of all spaces one after the other, and [spaces, 3] counters.

    Args:
        similarities: square matrices; ``sizes`` holds ``parents[k]`` entries for the k-th.
    """
    device = similarities[0].device
    name = choose("zip_match", backend, available(device, "native", "reference", "cuda"))
    rest = iter(sizes)
    shapes = [list(islice(rest, count)) for count in parents]
    run = {"native": _by_native, "reference": _by_reference, "cuda": _by_cuda}[name]
    outcomes = run(similarities, shapes, list(widths), alpha, beta, overwrite)
    labels, heights, _ = outcomes[0]
    if len(outcomes) > 1:
        labels = torch.cat([labels for labels, _, _ in outcomes])
        heights = torch.cat([heights for _, heights, _ in outcomes])
    counts = torch.from_numpy(np.array([one[2] for one in outcomes]))
    return labels.to(device), heights.to(device), counts


def _by_reference(
    similarities: list[Tensor],
    sizes: list[list[int]],
    widths: list[int],
    alpha: float,
    beta: float,
    overwrite: bool,
) -> list[Outcome]:
    from hetmerge.reference.zipping import zip_match

    outcomes = []
    for similarity, shape, width in zip(similarities, sizes, widths, strict=True):
        matrix = similarity.cpu()
        finite = bool(matrix.isfinite().all())
        wide = matrix.double()
        _check_values(
            matrix.dtype,
            float(wide.abs().max()) if finite else math.nan,
            float((wide - wide.T).abs().max()) if finite else 0.0,
        )
        upper = matrix.triu(1)
        labels, heights, relaxed = zip_match((upper + upper.T).numpy(), shape, width, alpha, beta)
        outcomes.append((torch.from_numpy(labels), torch.from_numpy(heights), [int(relaxed), 0, 0]))
    return outcomes


def _by_native(
    similarities: list[Tensor],
    sizes: list[list[int]],
    widths: list[int],
    alpha: float,
    beta: float,
    overwrite: bool,
) -> list[Outcome]:
    from hetmerge import _native

    matrices = [matrix.cpu().contiguous() for matrix in similarities]
    # Copies made on the way here may be used up as well.
    owned = [
        overwrite or matrix is not given
        for matrix, given in zip(matrices, similarities, strict=True)
    ]
    checks = [_native.check_symmetric(view(matrix), threads()) for matrix in matrices]
    for matrix, (peak, asymmetry) in zip(matrices, checks, strict=True):
        _check_values(matrix.dtype, peak, asymmetry)
    for k, (_, asymmetry) in enumerate(checks):
        if asymmetry > 0:
            matrices[k], owned[k] = matrices[k] if owned[k] else matrices[k].clone(), True
            _native.mirror_upper(view(matrices[k]), threads())
    found = _native.zip(
        [view(matrix) for matrix in matrices],
        sizes,
        [_budgets(shape, width, beta) for shape, width in zip(sizes, widths, strict=True)],
        widths,
        alpha,
        all(owned),
        threads(),
    )
    return [
        (
            torch.from_numpy(labels),
            torch.from_numpy(heights),
            [int(relaxed), rescans, 2 if chained else 1],
        )
        for labels, heights, relaxed, rescans, chained in found
    ]


def _by_cuda(
    similarities: list[Tensor],
    sizes: list[list[int]],
    widths: list[int],
    alpha: float,
    beta: float,
    overwrite: bool,
) -> list[Outcome]:
    """All spaces in rounds on their device; those that rounds cannot finish on the CPU."""
    from hetmerge import _native

    budgets = [_budgets(shape, width, beta) for shape, width in zip(sizes, widths, strict=True)]
    with torch.cuda.device(similarities[0].device):
        matrices = [_symmetric(matrix) for matrix in similarities]
        stream = torch.cuda.current_stream().cuda_stream
        views = [view(matrix) for matrix in matrices]
        try:
            found = _native.zip_in_rounds(views, sizes, budgets, widths, alpha, True, stream)
        except RuntimeError as error:
            raise BackendError(f"backend: zip_match on cuda: {error}") from error
    outcomes = []
    for k, one in enumerate(found):
        if one is None:
            outcomes += _by_native([matrices[k]], [sizes[k]], [widths[k]], alpha, beta, False)
            continue
        labels, heights = (torch.from_numpy(array) for array in one)
        outcomes.append((labels, heights, [0, 0, ALGORITHMS.index("rounds")]))
    return outcomes


def _symmetric(matrix: Tensor) -> Tensor:
    """The matrix, contiguous, after its check; the upper triangle counts where the two differ."""
    matrix = matrix.contiguous()
    peak = asymmetry = 0.0
    for begin in range(0, len(matrix), 1024):
        rows = matrix[begin : begin + 1024]
        columns = matrix[:, begin : begin + 1024].T
        largest = float(rows.abs().amax())
        peak = max(peak, largest) if math.isfinite(largest) else math.nan
        if math.isnan(peak):
            break
        asymmetry = max(asymmetry, float((rows - columns).abs().amax()))
    _check_values(matrix.dtype, peak, asymmetry)
    if asymmetry > 0:
        upper = matrix.triu(1)
        return upper + upper.T
    return matrix


def _budgets(sizes: list[int], width: int, beta: float) -> list[int]:
    total = sum(sizes)
    shares = [(total - width) * size // total for size in sizes]
    # A huge beta must still fit 64 bits.
    return [math.floor(min(share * beta, 2.0**62) + 1e-4) for share in shares]


def _check_values(dtype: torch.dtype, peak: float, asymmetry: float) -> None:
    if math.isnan(peak):
        raise InputError("similarity: has NaN or infinite entries, only finite ones are allowed")
    allowed = SYMMETRY[dtype] * peak
    if asymmetry > allowed:
        raise InputError(
            f"similarity: differs from its transpose by {asymmetry:.3g}, allowed is {allowed:.3g}"
        )
