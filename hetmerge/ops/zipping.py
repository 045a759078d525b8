"""Elastic zip: which features of all parents share a feature of the merged model."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hetmerge.errors import InputError
from hetmerge.ops.backend import choose, native_problem

# How far a similarity may be from its transpose, relative to its largest magnitude. Matrix
# products of both triangles round differently; anything beyond that is a different matrix.
SYMMETRY = {np.dtype(np.float32): 1e-5, np.dtype(np.float64): 1e-12}


@dataclass(frozen=True, eq=False)
class ZipResult:
    """Outcome of a zip.

    Attributes:
        labels: [O] int64, cluster of each feature in [0, width), on the device of the similarity.
            Clusters are numbered by their smallest member.
        heights: [merges] float64, the similarity at which each merge happened, in order.
        relaxed: the within-model budgets left no pair open before the width was reached and were
            dropped from there on, with the true similarities of the closed pairs.
        rescans: rows the cache had to search again (0 for the reference), a measure of difficulty.
        algorithm: "reference", "row-best" or "row-best+chain".
    """

    labels: Tensor
    heights: Tensor
    relaxed: bool
    rescans: int
    algorithm: str


def zip_match(
    similarity: Tensor | NDArray[Any],
    sizes: Sequence[int],
    width: int | None = None,
    alpha: float = 0.5,
    beta: float = 1.0,
    backend: str = "auto",
) -> Tensor:
    """Clusters of the greedy elastic zip, [O] int64 labels; see :func:`zip_match_info`."""
    return zip_match_info(similarity, sizes, width, alpha, beta, backend).labels


def zip_match_info(
    similarity: Tensor | NDArray[Any],
    sizes: Sequence[int],
    width: int | None = None,
    alpha: float = 0.5,
    beta: float = 1.0,
    backend: str = "auto",
) -> ZipResult:
    """Merge the most similar pair of features until ``width`` clusters are left.

    Elastic neuron zipping of arXiv 2501.00061, exactly: ties go to the smallest (row, column); a
    merged cluster is as similar to another as ``alpha`` times the lesser of the two merged, rounded
    to the matrix dtype, and keeps the index and the model of its smallest member; a merge within
    model i uses up one of ``floor(floor(removed * d_i / O) * beta + 1e-4)`` (checked after the
    merge, so at least one is allowed), after which that model's clusters no longer merge with each
    other. No feature is ever lost: see ``ZipResult.relaxed``.

    Equal matrices give equal labels, whatever the backend. The native backend takes about O(O^2)
    time and one more matrix of memory; with ``alpha > 1`` or too few positive similarities its
    worst case is O(O^3).

    Args:
        similarity: [O, O] float32 or float64, finite, symmetric up to 1e-5 (float32) or 1e-12
            (float64) of its largest magnitude; where the triangles differ the upper one counts.
            The diagonal is ignored. Never written to.
        sizes: features per parent in order, summing to O; 0 is allowed.
        width: clusters wanted, 1 to O; by default the largest size.
        alpha: factor on the similarity of a merged cluster, > 0. Values that overflow saturate.
        beta: factor on the within-model budgets, >= 0.
        backend: "auto", "native" or "reference".

    Raises:
        InputError: an argument is out of range.
        BackendError: the backend cannot run.
    """
    sizes = _check_sizes(sizes)
    matrix, device = _check_matrix(similarity, sum(sizes))
    total = len(matrix)
    width = max(sizes) if width is None else width
    if isinstance(width, bool) or not isinstance(width, int | np.integer):
        raise InputError(f"width: {width!r} is not an integer")
    if not 1 <= width <= total:
        raise InputError(f"width: {width} is not in 1..{total}, the number of features")
    if not (math.isfinite(alpha) and matrix.dtype.type(alpha) > 0):
        raise InputError(f"alpha: {alpha} is not a finite number > 0 in {matrix.dtype}")
    if not (math.isfinite(beta) and beta >= 0):
        raise InputError(f"beta: {beta} is not a finite number >= 0")
    name = choose("zip_match", backend, {"native": native_problem(), "reference": None})
    matrix = _check_values(matrix, name)

    if name == "reference":
        from hetmerge.reference.zipping import zip_match as reference

        labels, heights, relaxed = reference(matrix, sizes, int(width), alpha, beta)
        rescans, algorithm = 0, "reference"
    else:
        from hetmerge import _native

        removed = total - int(width)
        budgets = [_budget(removed * size // total, beta) for size in sizes]
        labels, heights, relaxed, rescans, chained = _native.zip(
            matrix, sizes, budgets, int(width), alpha
        )
        algorithm = "row-best+chain" if chained else "row-best"
    return ZipResult(
        torch.from_numpy(labels).to(device),
        torch.from_numpy(heights).to(device),
        relaxed,
        rescans,
        algorithm,
    )


def _budget(share: int, beta: float) -> int:
    return math.floor(min(share * beta, 2.0**62) + 1e-4)  # a huge beta must still fit 64 bits


def _check_sizes(sizes: Sequence[int]) -> list[int]:
    checked = [int(size) for size in sizes]
    if not checked or min(checked) < 0 or any(a != b for a, b in zip(checked, sizes, strict=True)):
        raise InputError(f"sizes: {list(sizes)} is not a list of one or more integers >= 0")
    return checked


def _check_matrix(
    similarity: Tensor | NDArray[Any], total: int
) -> tuple[NDArray[Any], torch.device]:
    if isinstance(similarity, Tensor):
        device = similarity.device
        if similarity.dtype not in (torch.float32, torch.float64):
            raise InputError(f"similarity: dtype {similarity.dtype} is not float32 or float64")
        matrix = similarity.detach().cpu().numpy()
    else:
        device, matrix = torch.device("cpu"), np.asarray(similarity)
        if matrix.dtype not in SYMMETRY:
            raise InputError(f"similarity: dtype {matrix.dtype} is not float32 or float64")
    if matrix.shape != (total, total):
        raise InputError(
            f"similarity: shape {list(matrix.shape)} is not [{total}, {total}], the sum of sizes"
        )
    # Also turns another byte order or an unaligned buffer into a plain array.
    return np.require(matrix, matrix.dtype.newbyteorder("="), ["C", "A"]), device


def _check_values(matrix: NDArray[Any], backend: str) -> NDArray[Any]:
    if backend == "native":
        from hetmerge import _native

        peak, asymmetry = _native.check_symmetric(matrix)
    elif not np.isfinite(matrix).all():
        peak, asymmetry = math.nan, 0.0
    else:
        wide = matrix.astype(np.float64)
        peak, asymmetry = float(np.abs(wide).max()), float(np.abs(wide - wide.T).max())
    if math.isnan(peak):
        raise InputError("similarity: has NaN or infinite entries, only finite ones are allowed")
    allowed = SYMMETRY[matrix.dtype] * peak
    if asymmetry > allowed:
        raise InputError(
            f"similarity: differs from its transpose by {asymmetry:.3g}, allowed is {allowed:.3g}"
        )
    if asymmetry > 0:
        upper = np.triu(matrix, 1)
        return np.asarray(upper + upper.T)
    return matrix
