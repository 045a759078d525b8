"""A batch of calibration inputs, as the parents and the merged network take it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from hetmerge.errors import InputError
from hetmerge.execution import flat_inputs
from hetmerge.windows import Windows

Call = tuple[tuple[Any, ...], dict[str, Any]]


class Joint(tuple[tuple[Any, ...], dict[str, Any]]):
    """A batch that every parent takes in a form of its own; as a call, the merged network's.

    Attributes:
        parents: per parent, its call. All inputs are [batch, length], padded to one length.
        rows: per parent and last of the merged network, int64 [N]: which of the batch * length
            positions hold the same; the n-th of everybody.
    """

    parents: tuple[Call, ...]
    rows: tuple[Tensor, ...]

    def __new__(cls, merged: Call, parents: tuple[Call, ...], rows: tuple[Tensor, ...]) -> Joint:
        made = super().__new__(cls, merged)
        made.parents, made.rows = parents, rows
        return made


def as_call(batch: Any) -> Call:
    """A batch as (args, kwargs): a tensor, a tuple or list of them, a mapping of names, windows."""
    if isinstance(batch, Joint):
        return batch
    if isinstance(batch, Windows):
        return _joint(batch)
    if isinstance(batch, Tensor):
        return (batch,), {}
    if isinstance(batch, Mapping):
        return (), dict(batch)
    if isinstance(batch, (tuple, list)):
        return tuple(batch), {}
    raise InputError(
        f"batches: got an item of type {type(batch).__name__}; "
        "allowed: a tensor, a tuple of what the model takes, or a dict of its keyword arguments"
    )


def _joint(windows: Windows) -> Joint:
    length = max(inputs["input_ids"].shape[1] for inputs in windows.inputs)
    calls: list[Call] = []
    for inputs in windows.inputs:
        grown = length - inputs["input_ids"].shape[1]
        calls.append(((), {name: F.pad(tensor, (0, grown)) for name, tensor in inputs.items()}))
    counted = windows.shared[0] >= 0
    start = torch.arange(len(counted))[:, None] * length
    rows = tuple((shared + start)[counted] for shared in windows.shared)
    return Joint(calls[-1], tuple(calls[:-1]), rows)


def as_given(calls: Sequence[Call]) -> list[Any]:
    """Calls as what :func:`as_call` makes them from."""
    return [call if isinstance(call, Joint) else call[1] or call[0] for call in calls]


def check_members(call: Call, parents: int) -> None:
    """A batch of windows has inputs for each parent and for the merged network."""
    if isinstance(call, Joint) and len(call.parents) != parents:
        raise InputError(
            f"batches: windows for {len(call.parents) + 1} models; allowed: {parents + 1}, the "
            "parents and the merged network"
        )


def samples(call: Call) -> int:
    """Number of samples in a batch: the first dimension of its first tensor."""
    values = (*call[0], *call[1].values())
    return next((len(v) for v in values if isinstance(v, Tensor) and v.dim()), 0)


def positions(call: Call) -> int:
    """What statistics count in a batch: tokens where the model takes tokens, samples elsewhere."""
    grid = grid_of(call)
    return grid[0] * grid[1] if grid else samples(call)


def grid_of(call: Call) -> tuple[int, int] | None:
    """[batch, length] of a batch of tokens."""
    first = next((v for v in flat_inputs(*call) if isinstance(v, Tensor)), None)
    if first is None or first.dim() != 2 or first.is_floating_point():
        return None
    return first.shape[0], first.shape[1]


def call_for(call: Call, member: int | None) -> Call:
    """The batch as one parent takes it; None: as the merged network does."""
    return call.parents[member] if isinstance(call, Joint) and member is not None else call


def rows_for(call: Call, member: int | None) -> Tensor | None:
    """Which of a parent's batch * length positions count, in an order that all parents share.

    Returns:
        int64 [N], or None for all positions, or where the batch is not one of tokens.
    """
    if isinstance(call, Joint):
        return call.rows[-1 if member is None else member]
    mask, grid = call[1].get("attention_mask"), grid_of(call)
    if not isinstance(mask, Tensor) or grid is None or tuple(mask.shape) != grid:
        return None
    found = mask.reshape(-1).bool()
    return None if bool(found.all()) else found.nonzero().flatten()


def comparable(value: Tensor, call: Call, member: int | None) -> Tensor:
    """The positions that count, [N, features]; values of another form than [batch, length, d] or
    [batch * length, d], and those of batches that are no tokens, as they are."""
    rows, grid = rows_for(call, member), grid_of(call)
    if rows is None or grid is None:
        return value
    flat = value.dim() == 2 and len(value) == grid[0] * grid[1]
    if not flat and (value.dim() != 3 or tuple(value.shape[:2]) != grid):
        return value
    return value.reshape(-1, value.shape[-1])[rows.to(value.device)]


def one_by_one(call: Call) -> Iterator[Call]:
    """The inputs of a batch one by one; a batch whose tensors have other first dimensions whole."""
    count = samples(call)
    if isinstance(call, Joint):
        lengths = [positions(own) // count for own in (*call.parents, call)]
        for i in range(count):
            at = call.rows[-1] // lengths[-1] == i
            rows = [x[at] - i * n for x, n in zip(call.rows, lengths, strict=True)]
            own = tuple(_input(call_for(call, m), i) for m in range(len(call.parents)))
            yield Joint(_input(call, i), own, tuple(rows))
        return
    values = (*call[0], *call[1].values())
    if any(isinstance(v, Tensor) and (v.dim() == 0 or len(v) != count) for v in values):
        yield call
        return
    for i in range(count):
        yield _input(call, i)


def _input(call: Call, index: int) -> Call:
    def one(value: object) -> object:
        return value[index : index + 1] if isinstance(value, Tensor) else value

    return tuple(map(one, call[0])), {name: one(value) for name, value in call[1].items()}
