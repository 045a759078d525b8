"""Projection: a partition of rows and columns applied to one tensor of all parents."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from hetmerge.errors import BackendError, InputError
from hetmerge.ops.backend import available, choose
from hetmerge.ops.library import register
from hetmerge.ops.native import View, threads, view

CHUNK = 1 << 22  # entries of a parent that the torch backend converts and sums at a time
INT32 = 2**31
LONGEST = 2**30  # entries of a row that CUDA code counts
INTEGERS = (torch.int32, torch.int64)
STORED = (torch.float32, torch.float64, torch.float16, torch.bfloat16)  # what native code reads
NARROW = (torch.float32, torch.float16, torch.bfloat16)  # what CUDA code reads and writes
Parents = Sequence[Tensor | None]


def project(
    weights: Parents,
    row_labels: Parents | None,
    col_labels: Parents | None,
    rows: int,
    cols: int | None = None,
    model_weights: Sequence[float] | None = None,
    backend: str = "auto",
    out_dtype: torch.dtype | None = None,
) -> Tensor:
    """Merged tensor ``sum_m M_m W_m U_m``: rows of a cluster averaged, columns of one summed.

    U_m sends the merged feature to every member column of parent m, so member columns add up. M_m
    averages over *all* members of a row cluster, of all parents: ``M_m[c, u] = w_m / sum of w over
    the members of c`` (arXiv 2501.00061, without its ``+ 1e-5``). A row no parent has a part in, or
    only parents of weight 0, is 0.

    Sums run in float64 if any parent is float64, else in float32, in a fixed order. The matrices M
    and U never exist, and nothing of the size of a tensor is allocated but the result.

    Args:
        weights: per parent [R_m, C_m, ...], or [R_m] vectors, floating point of any dtypes and
            strides, on one device. None for a parent without this tensor: it contributes nothing,
            but its row labels count.
        row_labels: per parent integer [R_m] in [0, rows); None for the identity, R_m == rows.
        col_labels: per parent integer [C_m] in [0, cols); None for the identity, C_m == cols.
            None, for all of them, where the weights are vectors.
        rows, cols: sizes of the result; ``cols`` is ignored for vectors.
        model_weights: per parent, >= 0, not all 0; equal by default.
        backend: "auto", "native" (one pass, on the CPU), "cuda" or "triton" (one pass, on a GPU),
            "torch" (``index_add_``) or "reference" (dense matrices, float64).
        out_dtype: of the result; by default that of the first parent that is present.

    Returns:
        [rows, cols, ...] or [rows], dense, with the axes in memory in the order in which the first
        parent that is present has them: the transposed parents of a transposed weight give one.

    Raises:
        InputError: an argument is out of range or the parents do not fit together.
        BackendError: the backend cannot run.
    """
    first = _check_weights(weights)
    shares = _check_model_weights(model_weights, len(weights))
    if not 1 <= rows < INT32:
        raise InputError(f"rows: {rows}, allowed are positive 32-bit integers")
    if out_dtype is not None and not out_dtype.is_floating_point:
        raise InputError(f"out_dtype: {out_dtype} is not a floating-point dtype")
    sizes = [None if weight is None else weight.shape[0] for weight in weights]
    row_of = _check_labels("row_labels", row_labels, sizes, rows, first.device)
    col_of: Sequence[Tensor | None] = []
    if first.ndim == 1:
        if col_labels is not None and any(labels is not None for labels in col_labels):
            raise InputError("col_labels: given for vectors, allowed is None")
        cols = 0
    elif cols is None or not 1 <= cols < INT32:
        raise InputError(f"cols: {cols}, allowed are positive 32-bit integers")
    else:
        if col_labels is not None and len(col_labels) == len(weights):
            # An absent parent has no columns, whatever its labels say.
            pairs = zip(col_labels, weights, strict=True)
            col_labels = [None if weight is None else labels for labels, weight in pairs]
        sizes = [None if weight is None else weight.shape[1] for weight in weights]
        col_of = _check_labels("col_labels", col_labels, sizes, cols, first.device)
    present = [x.detach() if x is not None and x.requires_grad else x for x in weights]
    dtype = first.dtype if out_dtype is None else out_dtype
    return _op(present, row_of, col_of, rows, cols, shares, dtype, backend)  # type: ignore[no-any-return]


def _check_weights(weights: Parents) -> Tensor:
    """The first parent that is present."""
    if all(weight is None for weight in weights):
        raise InputError(f"weights: none of {len(weights)} parents has a tensor, one is needed")
    first = _first(weights)
    device, trailing = first.device, first.shape[2:]
    for m, weight in enumerate(weights):
        if weight is None:
            continue
        if not weight.dtype.is_floating_point or weight.layout != torch.strided:
            raise InputError(
                f"weights[{m}]: dtype {weight.dtype}, {weight.layout}, allowed are dense "
                "floating-point tensors"
            )
        if weight.ndim == 0 or weight.ndim != first.ndim or weight.shape[2:] != trailing:
            raise InputError(
                f"weights[{m}]: shape {list(weight.shape)} does not match {list(first.shape)} of "
                "the first parent; [R_m] or [R_m, C_m, ...] with equal trailing sizes is allowed"
            )
        if weight.device != device:
            raise InputError(f"weights[{m}]: on {weight.device}, the first one on {device}")
    return first


def _check_model_weights(model_weights: Sequence[float] | None, parents: int) -> list[float]:
    shares = [1.0] * parents if model_weights is None else [float(w) for w in model_weights]
    if len(shares) != parents:
        raise InputError(f"model_weights: {len(shares)} values for {parents} parents")
    if not all(math.isfinite(w) and w >= 0 for w in shares) or sum(shares) == 0:
        raise InputError(f"model_weights: {shares}, allowed are finite values >= 0, not all 0")
    return shares


def _check_labels(
    name: str,
    given: Parents | None,
    sizes: Sequence[int | None],
    clusters: int,
    device: torch.device,
) -> Parents:
    """Labels as int32 or int64, of the right length; their values are checked with the data."""
    if given is None:
        given = [None] * len(sizes)
    if len(given) != len(sizes):
        raise InputError(f"{name}: {len(given)} entries for {len(sizes)} parents")
    checked: list[Tensor | None] = []
    for m, (labels, size) in enumerate(zip(given, sizes, strict=True)):
        if labels is None:
            if size is not None and size != clusters:
                raise InputError(
                    f"{name}[{m}]: None is the identity, but the parent has {size} and the result "
                    f"{clusters}"
                )
        else:
            if not isinstance(labels, Tensor):
                labels = torch.as_tensor(labels)
            dtype = labels.dtype
            if labels.ndim != 1 or (dtype not in INTEGERS and not _is_integer(dtype)):
                raise InputError(
                    f"{name}[{m}]: {dtype} {list(labels.shape)} is not a vector of integers"
                )
            if size is not None and labels.shape[0] != size:
                raise InputError(f"{name}[{m}]: {len(labels)} labels for {size} features")
            if dtype not in INTEGERS or labels.device != device:
                labels = labels.to(device, torch.int64)
        checked.append(labels)
    return checked


def _is_integer(dtype: torch.dtype) -> bool:
    return not (dtype.is_floating_point or dtype.is_complex or dtype == torch.bool)


def _run(
    weights: Parents,
    row_labels: Parents,
    col_labels: Parents,
    rows: int,
    cols: int,
    shares: Sequence[float],
    dtype: torch.dtype,
    backend: str,
) -> Tensor:
    first = _first(weights)
    found = available(first.device, "native", "cuda", "triton", "torch", "reference")
    name = choose("project", backend, found)
    if name == "native":
        if first.is_cpu:
            return _native(weights, row_labels, col_labels, rows, cols, shares, dtype)
        parts = _cpu(weights), _cpu(row_labels), _cpu(col_labels)
        return _native(*parts, rows, cols, shares, dtype).to(first.device)
    double = any(weight is not None and weight.dtype == torch.float64 for weight in weights)
    if name in ("cuda", "triton") and double:
        reason = "its sums are float32, and a parent is float64"
        name = choose("project", backend, {**found, "cuda": reason, "triton": reason})
    if name == "cuda" and _longest(weights, cols) > LONGEST:
        reason = f"a row of {_longest(weights, cols)} entries, allowed are {LONGEST}"
        name = choose("project", backend, {**found, "cuda": reason})
    if name == "cuda":
        return _cuda(weights, row_labels, col_labels, rows, cols, shares, dtype)
    row_of = _filled("row_labels", row_labels, rows, first)
    col_of = _filled("col_labels", col_labels, cols, first)
    heard = [x if share > 0 else None for x, share in zip(weights, shares, strict=True)]
    out = _empty(first, rows, cols, dtype)
    if name == "reference":
        from hetmerge.reference.project import project as reference

        cpu = [_cpu(x) for x in (heard, row_of, col_of)]
        return out.copy_(reference(cpu[0], cpu[1], cpu[2] or None, rows, cols, shares))  # type: ignore[arg-type]
    factors = _factors(row_of, rows, shares)
    if name == "torch":
        return out.copy_(_sum_parents(heard, row_of, col_of, out.shape, factors, double))
    from hetmerge.kernels.project import launch_project

    whole = out if out.is_contiguous() else out.new_empty(out.shape)
    narrow = [[labels.to(torch.int32) for labels in each] for each in (row_of, col_of)]
    launch_project(heard, narrow[0], narrow[1] or None, [x.float() for x in factors], whole)
    return whole if whole is out else out.copy_(whole)


def _longest(weights: Parents, cols: int) -> int:
    """Entries of the longest row, of the result or of a parent."""
    found = [(max(x.shape[1], cols), x.shape[2:]) for x in weights if x is not None and x.ndim > 1]
    return max((columns * math.prod(rest) for columns, rest in found), default=1)


def _fake(
    weights: Parents,
    row_labels: Parents,
    col_labels: Parents,
    rows: int,
    cols: int,
    shares: Sequence[float],
    dtype: torch.dtype,
    backend: str,
) -> Tensor:
    return _empty(_first(weights), rows, cols, dtype)


_op = register(
    "project(Tensor?[] weights, Tensor?[] row_labels, Tensor?[] col_labels, SymInt rows, "
    "SymInt cols, float[] shares, ScalarType dtype, str backend) -> Tensor",
    _run,
    _fake,
)


def _first(weights: Parents) -> Tensor:
    return next(weight for weight in weights if weight is not None)


def _cpu(tensors: Parents) -> list[Tensor | None]:
    return [None if x is None else x.cpu() for x in tensors]


def _empty(first: Tensor, rows: int, cols: int, dtype: torch.dtype) -> Tensor:
    """Room for the result: the axes in memory in the order in which ``first`` has them."""
    shape = (rows, cols, *first.shape[2:])[: first.ndim]
    if first.is_contiguous():
        return torch.empty(shape, dtype=dtype, device=first.device)
    strides = first.stride()
    order = sorted(range(first.ndim), key=lambda axis: -strides[axis])
    out = first.new_empty([shape[axis] for axis in order], dtype=dtype)
    return out.permute([order.index(axis) for axis in range(first.ndim)])


def _native(
    weights: Parents,
    row_labels: Parents,
    col_labels: Parents,
    rows: int,
    cols: int,
    shares: Sequence[float],
    dtype: torch.dtype,
) -> Tensor:
    """One pass over all parents. Rarer dtypes than ``STORED`` are converted before or after it."""
    from hetmerge import _native

    weights = [x if x is None or x.dtype in STORED else x.to(torch.float32) for x in weights]
    out = _empty(_first(weights), rows, cols, dtype if dtype in STORED else torch.float32)
    views = _views(weights), _views(row_labels), _views(col_labels)
    try:
        _native.project(*views, shares, view(out), threads())
    except ValueError as error:
        raise InputError(str(error)) from None
    return out if out.dtype == dtype else out.to(dtype)


def _cuda(
    weights: Parents,
    row_labels: Parents,
    col_labels: Parents,
    rows: int,
    cols: int,
    shares: Sequence[float],
    dtype: torch.dtype,
) -> Tensor:
    """As :func:`_native`, on a GPU."""
    from hetmerge import _native

    first = _first(weights)
    out = _empty(first, rows, cols, dtype)
    if out.numel() == 0:
        return out
    stored = dtype if dtype in NARROW else torch.float32
    direct = out.is_contiguous() and stored == dtype
    whole = out if direct else out.new_empty(out.shape, dtype=stored)
    shape = (cols, math.prod(first.shape[2:])) if first.ndim > 1 else (1, 1)
    flat = [None if x is None else _flat(x, shape[1]) for x in weights]
    room: list[Tensor] = []  # stays until the kernels are done

    def allocate(size: int) -> int:
        room.append(torch.empty(size, dtype=torch.uint8, device=first.device))
        return room[0].data_ptr()

    with torch.cuda.device(first.device):
        stream = torch.cuda.current_stream().cuda_stream
        views = _views(flat), _views(row_labels), _views(col_labels or [None] * len(weights))
        try:
            fits = _native.project_cuda(
                *views, shares, view(whole.view(rows, *shape)), allocate, stream
            )
        except RuntimeError as error:
            raise BackendError(f"backend: project on cuda: {error}") from error
    if not fits:
        _filled("row_labels", row_labels, rows, first)
        _filled("col_labels", col_labels, cols, first)
    return out if direct else out.copy_(whole)


def _flat(weight: Tensor, inner: int) -> Tensor:
    """[R, C, inner] of a type that CUDA code reads; copied only where it has to be."""
    columns = weight.shape[1] if weight.ndim > 1 else 1
    readable = weight if weight.dtype in NARROW else weight.float()
    return readable.reshape(len(weight), columns, inner)


def _views(tensors: Parents) -> list[View | None]:
    return [None if x is None else view(x) for x in tensors]


def _filled(name: str, given: Parents, clusters: int, like: Tensor) -> list[Tensor]:
    """Labels of all parents, checked, with the identity written out."""
    checked = {m: labels for m, labels in enumerate(given) if labels is not None and len(labels)}
    if checked:
        edges = [torch.stack(torch.aminmax(labels)).long() for labels in checked.values()]
        for m, (low, high) in zip(checked, torch.stack(edges).tolist(), strict=True):
            if low < 0 or high >= clusters:
                raise InputError(f"{name}[{m}]: labels {low}..{high} are not in 0..{clusters - 1}")
    return [torch.arange(clusters, device=like.device) if x is None else x for x in given]


def _factors(row_of: Sequence[Tensor], rows: int, shares: Sequence[float]) -> list[Tensor]:
    """Per parent [R_m] float64: its share over the shares of all members of the row's cluster."""
    mass = torch.zeros(rows, dtype=torch.float64, device=row_of[0].device)
    for share, labels in zip(shares, row_of, strict=True):
        members = labels.new_zeros(rows).index_add_(0, labels, torch.ones_like(labels))
        mass += share * members.double()
    return [share / mass[labels] for share, labels in zip(shares, row_of, strict=True)]


def _sum_parents(
    weights: Parents,
    row_of: Sequence[Tensor],
    col_of: Sequence[Tensor],
    shape: torch.Size,
    factors: Sequence[Tensor],
    double: bool,
) -> Tensor:
    dtype = torch.float64 if double else torch.float32
    total = torch.zeros(shape, dtype=dtype, device=row_of[0].device)
    for m, weight in enumerate(weights):
        if weight is None:
            continue
        labels = row_of[m]
        factor = factors[m].to(dtype).reshape(-1, *[1] * (weight.ndim - 1))
        step = max(1, CHUNK // max(1, math.prod(weight.shape[1:])))
        for begin in range(0, len(labels), step):
            part = slice(begin, begin + step)
            piece = weight[part].to(dtype) * factor[part]
            if col_of:
                summed = piece.new_zeros((len(piece), *shape[1:]))
                piece = summed.index_add_(1, col_of[m], piece)
            total.index_add_(0, labels[part], piece)
    return total
