"""Linear sum assignment: the best one-to-one pairing of two feature sets."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hetmerge.errors import BackendError, InputError
from hetmerge.ops.backend import available, choose
from hetmerge.ops.library import register
from hetmerge.ops.native import threads, view

SMALL = 512  # largest side of problems that the GPU solves, one block each
MANY = 64  # problems from which the GPU is worth it


@dataclass(frozen=True, eq=False)
class AssignmentResult:
    """Pairs with the proof that they are the best.

    Attributes:
        rows, cols: as :func:`linear_sum_assignment`.
        total: [...] float64, sum of the scores of the pairs.
        gap: [...] float64, how far ``total`` is from the bound that the dual prices give: 0 up to
            rounding at the optimum, never below what is left to gain by more than ``violation``.
        violation: [...] float64, by how much the prices break their own constraints at most, summed
            over the pairs: ``total`` is within ``gap + violation`` of the optimum.
        scans: [...] int64, rows read again after the first look at all: 0 where the best columns of
            all rows were different ones, which proves the optimum at once.
    """

    rows: Tensor
    cols: Tensor
    total: Tensor
    gap: Tensor
    violation: Tensor
    scans: Tensor


def linear_sum_assignment(
    score: Tensor | NDArray[Any],
    maximize: bool = True,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """Pairs (row, column), each used at most once, with the best total score.

    Exact: shortest augmenting paths after augmenting row reduction (Jonker and Volgenant 1987),
    float32 scores read as they are, prices and path lengths in float64. One problem per thread, or
    per block of a GPU. Deterministic; which optimum is returned where several exist depends on the
    backend.

    Args:
        score: [..., n, m], real and finite, any real dtype, any strides.
        maximize: the largest total if true, else the smallest.
        backend: "auto", "native", "cuda" (CUDA tensors of sides up to 512) or "reference" (SciPy).

    Returns:
        rows, cols: [..., min(n, m)] int64 each, rows ascending, on the device of ``score``.

    Raises:
        InputError: ``score`` has fewer than two dimensions, is complex or not finite.
        BackendError: the backend cannot run.
    """
    found: tuple[Tensor, Tensor] = _pairs(_problems(score), maximize, backend)
    return found


def linear_sum_assignment_info(
    score: Tensor | NDArray[Any], maximize: bool = True
) -> AssignmentResult:
    """As :func:`linear_sum_assignment` by the native backend, with a proof of the optimum.

    The prices of the dual problem are checked against every score: one more pass.
    """
    problems = _problems(score)
    choose("linear_sum_assignment", "native", available(torch.device("cpu"), "native"))
    flat = _flat(problems).cpu()
    pairs, (scans, prices, violations) = _solve(flat, maximize, proof=True)
    batch = problems.shape[:-2]
    rows, cols = (x.reshape(*batch, x.shape[-1]) for x in pairs)
    index = torch.arange(len(flat))[:, None]
    total = flat.double()[index, pairs[0], pairs[1]].sum(-1).reshape(batch)
    bound = prices.reshape(batch)
    gap = (-total if maximize else total) - bound
    device = problems.device
    return AssignmentResult(
        rows.to(device),
        cols.to(device),
        total.to(device),
        gap.to(device),
        (violations.reshape(batch) * cols.shape[-1]).to(device),
        scans.reshape(batch).to(device),
    )


def _problems(score: Tensor | NDArray[Any]) -> Tensor:
    """[..., n, m] float32 or float64; other dtypes in whichever holds them."""
    tensor = score.detach() if isinstance(score, Tensor) else torch.tensor(np.asarray(score))
    if tensor.ndim < 2:
        raise InputError(f"score: shape {list(tensor.shape)} is not [..., n, m]")
    if tensor.is_complex():
        raise InputError(f"score: dtype {tensor.dtype} is not a real one")
    if tensor.dtype in (torch.float16, torch.bfloat16):
        return tensor.float()
    return tensor if tensor.dtype in (torch.float32, torch.float64) else tensor.double()


def _implementation(score: Tensor, maximize: bool, backend: str) -> tuple[Tensor, Tensor]:
    name = choose("linear_sum_assignment", backend, _backends(score))
    flat = _flat(score)
    if name == "native":
        rows, cols = _solve(flat.cpu(), maximize)[0]
    else:
        _check_finite(bool(torch.isfinite(score).all()))
        rows, cols = (_solve_cuda if name == "cuda" else _by_reference)(flat, maximize)
    shape = (*score.shape[:-2], rows.shape[-1])
    return rows.to(score.device).reshape(shape), cols.to(score.device).reshape(shape)


def _by_reference(flat: Tensor, maximize: bool) -> tuple[Tensor, Tensor]:
    from hetmerge.reference.assignment import linear_sum_assignment as reference

    pairs = torch.empty(2, len(flat), min(flat.shape[1:]), dtype=torch.int64)
    for k, matrix in enumerate(flat.cpu().numpy()):
        pairs[:, k] = torch.from_numpy(np.stack(reference(matrix, maximize)))
    return pairs[0].clone(), pairs[1].clone()


def _fake(score: Tensor, maximize: bool, backend: str) -> tuple[Tensor, Tensor]:
    del maximize, backend
    shape = (*score.shape[:-2], min(score.shape[-2:]))
    rows = score.new_empty(shape, dtype=torch.int64)
    return rows, torch.empty_like(rows)


_pairs = register(
    "linear_sum_assignment(Tensor score, bool maximize, str backend) -> (Tensor, Tensor)",
    _implementation,
    _fake,
)


def _flat(score: Tensor) -> Tensor:
    return score.reshape(math.prod(score.shape[:-2]), *score.shape[-2:])


def _backends(score: Tensor) -> dict[str, str | None]:
    """Best first: a GPU for many small problems, else the CPU."""
    found = dict(available(score.device, "native", "reference", "cuda"))
    largest, count = max(score.shape[-2:]), math.prod(score.shape[:-2])
    if largest > SMALL and found["cuda"] is None:
        found["cuda"] = f"sides up to {SMALL} fit a block, these are {list(score.shape[-2:])}"
    if count < MANY:
        found["cuda"] = found.pop("cuda")  # possible, but the last choice
    return found


def _check_finite(finite: bool) -> None:
    if not finite:
        raise InputError("score: has NaN or infinite entries, only finite ones are allowed")


def _solve(
    flat: Tensor, maximize: bool, proof: bool = False
) -> tuple[tuple[Tensor, Tensor], list[Tensor]]:
    """Rows and columns [batch, pairs]; scans and, with ``proof``, prices and violations [batch]."""
    from hetmerge import _native

    rows, cols, unfit, *rest = _native.linear_sum_assignment(view(flat), maximize, threads(), proof)
    _check_finite(unfit < 0)
    facts = [torch.from_numpy(array) for array in rest] if proof else []
    return (torch.from_numpy(rows), torch.from_numpy(cols)), facts


def _solve_cuda(flat: Tensor, maximize: bool) -> tuple[Tensor, Tensor]:
    from hetmerge import _native

    batch, n, m = flat.shape
    turned = n > m
    rows = (flat.mT if turned else flat).contiguous()
    small, wide = rows.shape[1:]
    columns = torch.empty(batch, small, dtype=torch.int32, device=flat.device)
    prices = torch.empty(batch, wide, dtype=torch.float64, device=flat.device)
    if columns.numel():
        with torch.cuda.device(flat.device):
            stream = torch.cuda.current_stream().cuda_stream
            problem = _native.assign_cuda(
                view(rows), maximize, columns.data_ptr(), prices.data_ptr(), stream
            )
        if problem:
            raise BackendError(f"backend: linear_sum_assignment on cuda: {problem}")
    found = columns.long()
    index = torch.arange(small, device=flat.device).expand(batch, small)
    if not turned:
        return index.clone(), found
    order = found.argsort(1)
    return found.gather(1, order), index.gather(1, order)
