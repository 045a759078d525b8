"""Along which dimensions may a parameter-free value vary?"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from hetmerge.tracing.call import Call
from hetmerge.tracing.operators import MOVES
from hetmerge.tracing.rules.elementwise import NARY, UNARY
from hetmerge.tracing.rules.shape import swapped
from hetmerge.tracing.values import Const

_FILLS = """
    empty empty_like empty_permuted empty_strided full full_like new_empty new_empty_strided
    new_full new_ones new_zeros ones ones_like scalar_tensor zeros zeros_like
"""
FILLS = frozenset(_FILLS.split())
RESHAPES = MOVES | {
    *("_unsafe_view", "cat", "expand_as", "flatten", "repeat", "reshape", "select", "slice"),
    *("split", "split_with_sizes", "chunk", "unbind", "unflatten", "view", "index_select"),
}
BROADCASTS = UNARY | NARY | {"expand", "copy", "expand_as"}


def fold(call: Call, constants: Sequence[Const], result: torch.Tensor) -> Const:
    """One result of an operator that reads no parameter."""
    shape = tuple(int(n) for n in result.shape)
    data = any(c.data for c in constants) and call.name not in FILLS
    label = next((c.label for c in constants if c.data), "") if data else ""
    label = label or next((c.label for c in constants), "") or "a constant"
    varies = _variation(call, constants, shape)
    wide = {i for i, n in enumerate(shape) if n > 1}
    return Const(shape, frozenset(wide if varies is None else varies & wide), label, data)


def _variation(call: Call, constants: Sequence[Const], shape: tuple[int, ...]) -> set[int] | None:
    """Dimensions along which the result may vary; None for all of them."""
    rank = len(shape)
    if call.name in FILLS:
        return set()
    if not constants:
        return None
    if call.name in BROADCASTS:
        return {rank - c.rank + i for c in constants for i in c.varies}
    first = constants[0]
    if call.name == "unsqueeze":
        at = call.args["dim"] % rank
        return {i + (i >= at) for i in first.varies}
    if call.name == "transpose":
        order = swapped(rank, call.args["dim0"], call.args["dim1"])
        return {order[i] for i in first.varies}
    if call.name == "permute":
        order = [i % rank for i in call.args["dims"]]
        return {order.index(i) for i in first.varies}
    if call.name == "slice":
        return set(first.varies)
    if call.name in RESHAPES and len(constants) == 1 and not first.varies:
        return set()
    return None
