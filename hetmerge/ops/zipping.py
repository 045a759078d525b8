"""Elastic zip: which features of all parents share a feature of the merged model."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hetmerge.errors import InputError
from hetmerge.ops.library import register
from hetmerge.ops.zipping_backends import ALGORITHMS, solve


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
        algorithm: one of ``hetmerge.ops.zipping_backends.ALGORITHMS``.
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
    overwrite: bool = False,
) -> Tensor:
    """Clusters of the greedy elastic zip, [O] int64 labels; see :func:`zip_match_info`.

    torch.compile traces it as one operation, ``torch.ops.hetmerge.zip`` or, with ``overwrite``,
    ``torch.ops.hetmerge.zip_``.
    """
    matrices, shapes, widths = _check([similarity], [sizes], [width], alpha, beta, overwrite)
    return _call(matrices, shapes, widths, alpha, beta, backend, overwrite)[0]


def zip_match_info(
    similarity: Tensor | NDArray[Any],
    sizes: Sequence[int],
    width: int | None = None,
    alpha: float = 0.5,
    beta: float = 1.0,
    backend: str = "auto",
    overwrite: bool = False,
) -> ZipResult:
    """Merge the most similar pair of features until ``width`` clusters are left.

    Elastic neuron zipping of arXiv 2501.00061, exactly: ties go to the smallest (row, column); a
    merged cluster is as similar to another as ``alpha`` times the lesser of the two merged, rounded
    to the matrix dtype, and keeps the index and the model of its smallest member; a merge within
    model i uses up one of ``floor(floor(removed * d_i / O) * beta + 1e-4)`` (checked after the
    merge, so at least one is allowed), after which that model's clusters no longer merge with each
    other. No feature is ever lost: see ``ZipResult.relaxed``.

    Equal matrices give equal labels, whatever the backend and the number of threads. The native
    backend takes about O(O^2) time and one more matrix of memory, none with ``overwrite``; where
    the cache has to search too often and chains take over, they work on a copy of what is left.
    With ``alpha > 1`` or too few positive similarities the worst case is O(O^3).

    Args:
        similarity: [O, O] float32 or float64, finite, symmetric up to 1e-5 (float32) or 1e-12
            (float64) of its largest magnitude; where the triangles differ the upper one counts.
            The diagonal is ignored.
        sizes: features per parent in order, summing to O; 0 is allowed.
        width: clusters wanted, 1 to O; by default the largest size.
        alpha: factor on the similarity of a merged cluster, > 0. Values that overflow saturate.
        beta: factor on the within-model budgets, >= 0.
        backend: "auto", "native" or "reference".
        overwrite: use the similarity, which must be contiguous and writable, as workspace: what it
            holds afterwards is undefined. Otherwise it is never written to.

    Raises:
        InputError: an argument is out of range.
        BackendError: the backend cannot run.
    """
    return zip_match_many([similarity], [sizes], [width], alpha, beta, backend, overwrite)[0]


def zip_match_many(
    similarities: Sequence[Tensor | NDArray[Any]],
    sizes: Sequence[Sequence[int]],
    widths: Sequence[int | None] | None = None,
    alpha: float = 0.5,
    beta: float = 1.0,
    backend: str = "auto",
    overwrite: bool = False,
) -> list[ZipResult]:
    """:func:`zip_match_info` of many spaces at once, one space per thread.

    Args:
        similarities: one [O, O] matrix per space, all on one device.
        sizes: features per parent, one list per space.
        widths: clusters wanted per space; by default the largest size of each.
        alpha, beta, backend, overwrite: as there, for all spaces.
    """
    widths = [None] * len(sizes) if widths is None else widths
    matrices, shapes, wanted = _check(similarities, sizes, widths, alpha, beta, overwrite)
    if not matrices:
        return []
    labels, heights, counts = _call(matrices, shapes, wanted, alpha, beta, backend, overwrite)
    totals = [len(matrix) for matrix in matrices]
    merges = [total - width for total, width in zip(totals, wanted, strict=True)]
    return [
        ZipResult(label, height, bool(relaxed), rescans, ALGORITHMS[algorithm])
        for label, height, (relaxed, rescans, algorithm) in zip(
            labels.split(totals), heights.split(merges), counts.tolist(), strict=True
        )
    ]


def _check(
    similarities: Sequence[Tensor | NDArray[Any]],
    sizes: Sequence[Sequence[int]],
    widths: Sequence[int | None],
    alpha: float,
    beta: float,
    overwrite: bool,
) -> tuple[list[Tensor], list[list[int]], list[int]]:
    if not len(similarities) == len(sizes) == len(widths):
        raise InputError(
            f"sizes and widths: got {len(sizes)} and {len(widths)} for {len(similarities)} "
            "similarities, one each is needed"
        )
    if not (math.isfinite(beta) and beta >= 0):
        raise InputError(f"beta: {beta} is not a finite number >= 0")
    shapes = [_check_sizes(one) for one in sizes]
    matrices = [
        _check_matrix(matrix, sum(shape), alpha, overwrite)
        for matrix, shape in zip(similarities, shapes, strict=True)
    ]
    if any(matrix.device != matrices[0].device for matrix in matrices):
        raise InputError("similarities: on several devices, all must be on one")
    wanted = [_check_width(w, shape) for w, shape in zip(widths, shapes, strict=True)]
    return matrices, shapes, wanted


def _check_sizes(sizes: Sequence[int]) -> list[int]:
    checked = [int(size) for size in sizes]
    if not checked or min(checked) < 0 or any(a != b for a, b in zip(checked, sizes, strict=True)):
        raise InputError(f"sizes: {list(sizes)} is not a list of one or more integers >= 0")
    return checked


def _check_matrix(
    similarity: Tensor | NDArray[Any], total: int, alpha: float, overwrite: bool
) -> Tensor:
    matrix = similarity if isinstance(similarity, Tensor) else _to_tensor(similarity, overwrite)
    if matrix.dtype not in (torch.float32, torch.float64):
        raise InputError(f"similarity: dtype {matrix.dtype} is not float32 or float64")
    if matrix.shape != (total, total):
        raise InputError(
            f"similarity: shape {list(matrix.shape)} is not [{total}, {total}], the sum of sizes"
        )
    if overwrite and not matrix.is_contiguous():
        raise InputError(
            f"similarity: strides {list(matrix.stride())}; overwrite needs a contiguous matrix"
        )
    # Half the smallest positive number rounds to 0, the even neighbour.
    smallest = 2.0**-149 if matrix.dtype == torch.float32 else 2.0**-1074
    largest = torch.finfo(matrix.dtype).max
    if not (math.isfinite(alpha) and alpha > 0 and smallest * 0.5000001 <= alpha <= largest):
        raise InputError(f"alpha: {alpha} is not a finite number > 0 in {matrix.dtype}")
    return matrix.detach()


def _to_tensor(similarity: NDArray[Any], overwrite: bool) -> Tensor:
    matrix = np.asarray(similarity)
    if matrix.dtype not in (np.float32, np.float64):
        raise InputError(f"similarity: dtype {matrix.dtype} is not float32 or float64")
    # Also turns another byte order or an unaligned or read-only buffer into a plain array.
    plain = np.require(matrix, matrix.dtype.newbyteorder("="), ["C", "A", "W"])
    if overwrite and plain is not matrix and not np.shares_memory(plain, matrix):
        raise InputError("similarity: overwrite needs a contiguous and writable array")
    return torch.from_numpy(plain)


def _check_width(width: int | None, sizes: list[int]) -> int:
    width = max(sizes) if width is None else width
    if isinstance(width, bool) or not isinstance(width, int | np.integer):
        raise InputError(f"width: {width!r} is not an integer")
    if not 1 <= width <= sum(sizes):
        raise InputError(f"width: {width} is not in 1..{sum(sizes)}, the number of features")
    return int(width)


def _call(
    matrices: list[Tensor],
    sizes: list[list[int]],
    widths: list[int],
    alpha: float,
    beta: float,
    backend: str,
    overwrite: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    op = _zip_in_place if overwrite else _zip
    flat, parents = [d for one in sizes for d in one], [len(one) for one in sizes]
    found: tuple[Tensor, Tensor, Tensor] = op(
        matrices, flat, parents, widths, float(alpha), float(beta), backend
    )
    return found


def _fake(
    similarities: list[Tensor], sizes: list[int], parents: list[int], widths: list[int], *_: object
) -> tuple[Tensor, Tensor, Tensor]:
    total, like = sum(len(matrix) for matrix in similarities), similarities[0]
    return (
        like.new_empty(total, dtype=torch.int64),
        like.new_empty(total - sum(widths), dtype=torch.float64),
        torch.empty(len(widths), 3, dtype=torch.int64),
    )


# Labels and heights of all spaces one after the other; per space: relaxed, rescans, algorithm.
_SCHEMA = (
    "{}({} similarities, int[] sizes, int[] parents, int[] widths, float alpha, float beta, "
    "str backend) -> (Tensor, Tensor, Tensor)"
)
_zip = register(_SCHEMA.format("zip", "Tensor[]"), partial(solve, overwrite=False), _fake)
_zip_in_place = register(
    _SCHEMA.format("zip_", "Tensor(a!)[]"), partial(solve, overwrite=True), _fake
)
