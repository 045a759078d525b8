"""Projection: a partition of rows and columns applied to one tensor of all parents."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from hetmerge.errors import InputError
from hetmerge.ops.backend import choose

CHUNK = 1 << 22  # entries of a parent converted and summed at a time


def project(
    weights: Sequence[Tensor | None],
    row_labels: Sequence[Tensor | None] | None,
    col_labels: Sequence[Tensor | None] | None,
    rows: int,
    cols: int | None = None,
    model_weights: Sequence[float] | None = None,
    backend: str = "auto",
) -> Tensor:
    """Merged tensor ``sum_m M_m W_m U_m``: rows of a cluster averaged, columns of one summed.

    U_m sends the merged feature to every member column of parent m, so member columns add up. M_m
    averages over *all* members of a row cluster, of all parents: ``M_m[c, u] = w_m / sum of w over
    the members of c`` (arXiv 2501.00061, without its ``+ 1e-5``). A row no parent has a part in, or
    only parents of weight 0, is 0.

    Sums run in float64 if any parent is float64, else in float32, in a fixed order. The labels act
    by ``index_add_``; matrices M and U never exist.

    Args:
        weights: per parent [R_m, C_m, ...], or [R_m] vectors, floating point, on one device. None
            for a parent without this tensor: it contributes nothing, but its row labels count.
        row_labels: per parent integer [R_m] in [0, rows); None for the identity, R_m == rows.
        col_labels: per parent integer [C_m] in [0, cols); None for the identity, C_m == cols.
            None, for all of them, where the weights are vectors.
        rows, cols: sizes of the result; ``cols`` is ignored for vectors.
        model_weights: per parent, >= 0, not all 0; equal by default.
        backend: "auto", "torch" or "reference" (dense matrices, float64).

    Returns:
        [rows, cols, ...] or [rows], in the dtype of the first parent that is present.

    Raises:
        InputError: an argument is out of range or the parents do not fit together.
        BackendError: the backend cannot run.
    """
    present = [weight.detach() for weight in weights if weight is not None]
    _check_weights(weights, present)
    first = present[0]
    shares = _check_model_weights(model_weights, len(weights))
    if rows < 1:
        raise InputError(f"rows: {rows} is not a positive integer")
    sizes = [None if weight is None else weight.shape[0] for weight in weights]
    row_of = _check_labels("row_labels", row_labels, sizes, rows, first.device)
    if first.ndim == 1:
        if col_labels is not None and any(labels is not None for labels in col_labels):
            raise InputError("col_labels: given for vectors, allowed is None")
        col_of, cols = None, 0
    else:
        if cols is None or cols < 1:
            raise InputError(f"cols: {cols} is not a positive integer")
        sizes = [0 if weight is None else weight.shape[1] for weight in weights]
        if col_labels is not None and len(col_labels) == len(weights):
            # An absent parent has no columns, whatever its labels say.
            col_labels = [
                first.new_zeros(0, dtype=torch.int64) if weight is None else labels
                for weight, labels in zip(weights, col_labels, strict=True)
            ]
        elif col_labels is None:
            col_labels = [
                first.new_zeros(0, dtype=torch.int64) if weight is None else None
                for weight in weights
            ]
        col_of = _check_labels("col_labels", col_labels, sizes, cols, first.device)

    if choose("project", backend, {"torch": None, "reference": None}) == "reference":
        from hetmerge.reference.project import project as reference

        cpu = [None if weight is None else weight.detach().cpu() for weight in weights]
        row_cpu = [labels.cpu() for labels in row_of]
        col_cpu = None if col_of is None else [labels.cpu() for labels in col_of]
        return reference(cpu, row_cpu, col_cpu, rows, cols, shares).to(first.device, first.dtype)
    return _sum_parents(weights, row_of, col_of, rows, cols, shares, first)


def _sum_parents(
    weights: Sequence[Tensor | None],
    row_of: Sequence[Tensor],
    col_of: Sequence[Tensor] | None,
    rows: int,
    cols: int,
    shares: Sequence[float],
    first: Tensor,
) -> Tensor:
    double = any(weight is not None and weight.dtype == torch.float64 for weight in weights)
    dtype = torch.float64 if double else torch.float32
    mass = torch.zeros(rows, dtype=torch.float64, device=first.device)
    for share, labels in zip(shares, row_of, strict=True):
        mass.index_add_(0, labels, mass.new_full((len(labels),), share))
    shape = (rows,) if col_of is None else (rows, cols, *first.shape[2:])
    total = torch.zeros(shape, dtype=dtype, device=first.device)
    for m, weight in enumerate(weights):
        if weight is None or shares[m] == 0:
            continue
        labels = row_of[m]
        factor = (shares[m] / mass[labels]).to(dtype)
        factor = factor.reshape(-1, *[1] * (weight.ndim - 1))
        step = max(1, CHUNK // max(1, math.prod(weight.shape[1:])))
        for begin in range(0, len(labels), step):
            part = slice(begin, begin + step)
            piece = weight.detach()[part].to(dtype) * factor[part]
            if col_of is not None:
                piece = _sum_columns(piece, col_of[m], cols)
            total.index_add_(0, labels[part], piece)
    return total.to(first.dtype)


def _sum_columns(piece: Tensor, labels: Tensor, cols: int) -> Tensor:
    order = torch.arange(len(labels), device=labels.device)
    if len(labels) == cols and torch.equal(labels, order):
        return piece
    summed = piece.new_zeros((len(piece), cols, *piece.shape[2:]))
    return summed.index_add_(1, labels, piece)


def _check_weights(weights: Sequence[Tensor | None], present: Sequence[Tensor]) -> None:
    if not present:
        raise InputError(f"weights: none of {len(weights)} parents has a tensor, one is needed")
    first = present[0]
    for m, weight in enumerate(weights):
        if weight is None:
            continue
        if not weight.dtype.is_floating_point:
            raise InputError(f"weights[{m}]: dtype {weight.dtype} is not a floating-point one")
        if weight.ndim == 0 or weight.ndim != first.ndim or weight.shape[2:] != first.shape[2:]:
            raise InputError(
                f"weights[{m}]: shape {list(weight.shape)} does not match {list(first.shape)} of "
                "the first parent; [R_m] or [R_m, C_m, ...] with equal trailing sizes is allowed"
            )
        if weight.device != first.device:
            raise InputError(f"weights[{m}]: on {weight.device}, the first one on {first.device}")


def _check_model_weights(model_weights: Sequence[float] | None, parents: int) -> list[float]:
    shares = [1.0] * parents if model_weights is None else [float(w) for w in model_weights]
    if len(shares) != parents:
        raise InputError(f"model_weights: {len(shares)} values for {parents} parents")
    if not all(math.isfinite(w) and w >= 0 for w in shares) or sum(shares) == 0:
        raise InputError(f"model_weights: {shares}, allowed are finite values >= 0, not all 0")
    return shares


def _check_labels(
    name: str,
    given: Sequence[Tensor | None] | None,
    sizes: Sequence[int | None],
    clusters: int,
    device: torch.device,
) -> list[Tensor]:
    given = [None] * len(sizes) if given is None else given
    if len(given) != len(sizes):
        raise InputError(f"{name}: {len(given)} entries for {len(sizes)} parents")
    checked = []
    for m, (labels, size) in enumerate(zip(given, sizes, strict=True)):
        if labels is None:
            if size is not None and size != clusters:
                raise InputError(
                    f"{name}[{m}]: None is the identity, but the parent has {size} and the result "
                    f"{clusters}"
                )
            labels = torch.arange(clusters)
        labels = torch.as_tensor(labels)
        if labels.ndim != 1 or labels.dtype.is_floating_point or labels.dtype == torch.bool:
            raise InputError(
                f"{name}[{m}]: {labels.dtype} {list(labels.shape)} is not a vector of integers"
            )
        if size is not None and len(labels) != size:
            raise InputError(f"{name}[{m}]: {len(labels)} labels for {size} features")
        if len(labels) and (int(labels.min()) < 0 or int(labels.max()) >= clusters):
            raise InputError(
                f"{name}[{m}]: labels {int(labels.min())}..{int(labels.max())} are not in "
                f"0..{clusters - 1}"
            )
        checked.append(labels.to(device, torch.int64))
    return checked
