"""Operators that read, place or join parts of tensors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hetmerge.tracing.axes import Axis, Dim, Mismatch, concat, cut, extent, take, unite
from hetmerge.tracing.call import Call, free, stacked
from hetmerge.tracing.rules.elementwise import broadcast
from hetmerge.tracing.rules.table import rule
from hetmerge.tracing.values import Const, Family, Val, joined


def section(dim: Dim, start: int, stop: int) -> Dim:
    """Entries start..stop of a dimension."""
    if not 0 <= start <= stop <= extent(dim):
        raise Mismatch(f"invalid section {start}:{stop}")
    if start == stop:
        return (Axis(0),)
    head = cut(dim, stop)[0] if stop < extent(dim) else dim
    return cut(head, start)[1] if start > 0 else head


def sliced(value: Val, dim: int, start: int, stop: int) -> Val:
    """Contiguous entries along one dimension."""
    dims = list(value.dims)
    dims[dim] = section(dims[dim], start, stop)
    return Val(tuple(dims), value.origin)


def selected(value: Val, dim: int, index: int) -> Val:
    """One entry along a dimension, which disappears."""
    size = extent(value.dims[dim])
    if size > 1:
        value = sliced(value, dim, index % size, index % size + 1)
    origin = value.origin
    return Val(
        (*value.dims[:dim], *value.dims[dim + 1 :]),
        None if origin is None else (*origin[:dim], *origin[dim + 1 :]),
    )


def bounds(call: Call, size: int) -> tuple[int, int, int]:
    """Start, stop and step of a slice, within 0..size."""
    start, stop, step = call.get("start") or 0, call.get("end"), call.get("step", 1)
    start, stop, step = slice(start, size if stop is None else stop, step).indices(size)
    return start, max(start, stop), step


@rule("slice")
def slice_rule(call: Call) -> Val:
    x = call.val("self")
    dim = call.get("dim", 0) % x.rank
    size = extent(x.dims[dim])
    start, stop, step = bounds(call, size)
    if step == 1 or stop - start == 1:
        return sliced(x, dim, start, min(stop, start + 1) if step > 1 else stop)
    return strided(call, x, dim, start, stop, step)


def strided(call: Call, x: Val, dim: int, start: int, stop: int, step: int) -> Val:
    """Every step-th entry: the outer factor of a product whose inner factor is pinned."""
    size = extent(x.dims[dim])
    dims = list(x.dims)
    if size % step or start >= step or stop <= size - step + start:
        call.fix(x.dims, [dim], "strided slice")
        dims[dim] = call.pinned(call.shape[dim], "strided slice")
    else:
        dims[dim], inner = take(x.dims[dim], size // step)
        call.pin(inner, "strided slice")
    return Val(tuple(dims), x.origin)


@rule("narrow")
def narrow(call: Call) -> Val:
    x, start = call.val("self"), call.args["start"]
    dim = call.args["dim"] % x.rank
    start %= extent(x.dims[dim])
    return sliced(x, dim, start, start + call.args["length"])


@rule("select")
def select(call: Call) -> Val:
    x = call.val("self")
    return selected(x, call.args["dim"] % x.rank, call.args["index"])


@rule("unbind")
def unbind(call: Call) -> list[Val]:
    x = call.val("self")
    dim = call.get("dim", 0) % x.rank
    return [selected(x, dim, i) for i in range(extent(x.dims[dim]))]


@rule("split", "split_with_sizes", "chunk", "unsafe_split", "unsafe_chunk", "tensor_split")
def split(call: Call) -> list[Val]:
    x = call.val("self")
    dim = call.get("dim", 0) % x.rank
    ends = [0]
    for part in call.result:
        ends.append(ends[-1] + int(part.shape[dim]))
    return [sliced(x, dim, a, b) for a, b in zip(ends, ends[1:], strict=False)]


def joined_end_to_end(values: Sequence[Val], dim: int) -> Val:
    """Concatenate along one dimension; all others are united."""
    first = values[0]
    dims: list[Dim] = []
    for i in range(first.rank):
        if i == dim:
            dims.append(concat([value.dims[i] for value in values]))
            continue
        for other in values[1:]:
            unite(first.dims[i], other.dims[i])
        dims.append(first.dims[i])
    if any(value.origin is None for value in values):
        return Val(tuple(dims))
    origins = [value.origin or () for value in values]
    return Val(tuple(dims), tuple(joined(group) for group in zip(*origins, strict=True)))


@rule("cat", "concat", "concatenate")
def cat(call: Call) -> Val:
    # a one-dimensional empty tensor may be joined to anything
    tensors = [x for x in call.args["tensors"] if 0 not in x.shape]
    values = [call.as_val(x) for x in tensors]
    dim = call.get("dim", 0) % values[0].rank
    return joined_end_to_end(values, dim) if len(values) > 1 else values[0]


@rule("stack")
def stack(call: Call) -> Val:
    values = [call.as_val(x) for x in call.args["tensors"]]
    return stacked(values, call.get("dim", 0) % (values[0].rank + 1))


@rule("pad", "constant_pad_nd")
def pad(call: Call) -> Val:
    x, pads = call.val("self"), call.args["pad"]
    constant = call.get("mode", "constant") == "constant"
    dims = list(x.dims)
    for place in range(len(pads) // 2):
        i, before, after = x.rank - 1 - place, pads[2 * place], pads[2 * place + 1]
        if (before or after) and not constant:
            call.fix(x.dims, [i], "padded with its own entries")
            dims[i] = call.pinned(call.shape[i], "padded with its own entries")
            continue
        size = extent(dims[i])
        dims[i] = section(dims[i], max(0, -before), size - max(0, -after))
        parts = [free(before)] * (before > 0) + [dims[i]] + [free(after)] * (after > 0)
        dims[i] = concat(parts) if len(parts) > 1 else dims[i]
    return Val(tuple(dims))


@rule("slice_scatter")
def slice_scatter(call: Call) -> Val:
    x, src = call.val("self"), call.val("src")
    dim = call.get("dim", 0) % x.rank
    size = extent(x.dims[dim])
    start, stop, step = bounds(call, size)
    if step != 1:
        raise Mismatch("slice_scatter with a step")
    parts = [src]
    if start > 0:
        parts.insert(0, sliced(x, dim, 0, start))
    if stop < size:
        parts.append(sliced(x, dim, stop, size))
    if len(parts) == 1:
        return Val(src.dims)
    return joined_end_to_end(parts, dim)


@rule("select_scatter")
def select_scatter(call: Call) -> Val:
    x, src = call.val("self"), call.val("src")
    dim = call.args["dim"] % x.rank
    size = extent(x.dims[dim])
    index = call.args["index"] % size
    parts = [Val((*src.dims[:dim], (), *src.dims[dim:]))]
    if index > 0:
        parts.insert(0, sliced(x, dim, 0, index))
    if index < size - 1:
        parts.append(sliced(x, dim, index + 1, size))
    return joined_end_to_end(parts, dim) if len(parts) > 1 else parts[0]


@rule("embedding")
def embedding(call: Call) -> Val:
    weight, indices = call.val("weight"), call.val("indices")
    call.looked_up(call.args["weight"])
    call.fix(weight.dims, [0], "rows are chosen by index")
    return Val((*indices.dims, *weight.dims[1:]))


@rule("index_select")
def index_select(call: Call) -> Val:
    x = call.val("self")
    dim = call.args["dim"] % x.rank
    _read_positions(call, [call.args["index"]])
    call.fix(x.dims, [dim], "entries are chosen by index")
    dims = list(x.dims)
    dims[dim] = call.pinned(call.shape[dim], "entries chosen by index")
    return Val(tuple(dims))


def _read_positions(call: Call, indices: Sequence[Any]) -> None:
    """The order of index tensors that depend on parameters is not tracked: fix it."""
    for index in indices:
        if isinstance(index, (Val, Family)):
            value = call.as_val(index)
            call.fix(value.dims, range(value.rank), "its values are used as an index")


@rule("index", "_unsafe_index")
def index(call: Call) -> Val:
    x, indices = call.val("self"), list(call.args["indices"])
    at = [i for i, chosen in enumerate(indices) if chosen is not None]
    if at != list(range(at[0], at[0] + len(at))):
        raise Mismatch("advanced indices that are not adjacent")
    _read_positions(call, [indices[i] for i in at])
    call.looked_up(call.args["self"])
    call.fix(x.dims, at, "entries are chosen by index")
    rank = len(call.shape) - (x.rank - len(at))
    chosen = tuple(
        call.pinned(n, "entries chosen by index") for n in call.shape[at[0] : at[0] + rank]
    )
    return Val((*x.dims[: at[0]], *chosen, *x.dims[at[-1] + 1 :]))


@rule("gather")
def gather(call: Call) -> Val:
    x, chosen = call.val("self"), call.args["index"]
    dim = call.args["dim"] % max(1, x.rank)
    _read_positions(call, [chosen])
    where = chosen.shape
    # an index that is the same along a dimension leaves that dimension free
    varies = chosen.varies if isinstance(chosen, Const) else set(range(x.rank))
    held = [i for i in range(x.rank) if i == dim or i in varies or where[i] != extent(x.dims[i])]
    call.fix(x.dims, held, "entries are chosen by index")
    return Val(
        tuple(
            call.pinned(where[i], "entries chosen by index") if i in held else x.dims[i]
            for i in range(x.rank)
        )
    )


@rule("index_put", "index_add", "index_copy", "scatter", "scatter_add", "index_fill",
      "masked_scatter", "scatter_reduce", "diagonal_scatter", "as_strided_scatter")  # fmt: skip
def written_by_index(call: Call) -> Val:
    if call.name != "index_put":
        raise Mismatch("positions are chosen at run time")
    x, values, indices = call.val("self"), call.val("values"), list(call.args["indices"])
    if any(chosen is None for chosen in indices) or any(len(i.shape) != 1 for i in indices[:1]):
        raise Mismatch("index_put that is not by rows")
    _read_positions(call, indices)
    count = len(indices)
    call.fix(x.dims, range(count), "entries are chosen by index")
    tail = x.dims[count:]
    call.fix(values.dims, range(values.rank - len(tail)), "entries are chosen by index")
    rest = broadcast([Val(tail), Val(values.dims[values.rank - len(tail) :])]) if tail else Val(())
    head = tuple(call.pinned(n, "entries chosen by index") for n in call.shape[:count])
    return Val((*head, *rest.dims))
