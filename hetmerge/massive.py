"""Calibration without the positions of massive activations."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hetmerge.alignment import find_stages
from hetmerge.batches import Call, Joint, call_for, grid_of, rows_for
from hetmerge.calibration import as_calls
from hetmerge.devices import device_of
from hetmerge.errors import InputError
from hetmerge.lazy import Checkpoint
from hetmerge.network import Network, release
from hetmerge.progress import Progress
from hetmerge.snapshots import read_tree, write_tree
from hetmerge.windows import massive


def without_massive(
    models: Sequence[nn.Module | Checkpoint],
    batches: Iterable[Any],
    *,
    known: Path | None = None,
    progress: bool | None = None,
) -> list[Joint]:
    """Batches of tokens in which positions count only where no unit of any parent is massive.

    One more pass of every parent. See :func:`hetmerge.windows.massive` for what that is.

    Args:
        models: the parents.
        batches: of tokens, or windows.
        known: a file that keeps what was found; read instead of a pass if it is there.
        progress: show bars on standard error; None: only on a terminal.

    Raises:
        InputError: a batch holds no tokens.
        CheckpointError: the file is damaged.
    """
    calls = as_calls(models, batches, "segment")
    if any(grid_of(call) is None for call in calls):
        raise InputError("exclude_massive: a batch holds no tokens; allowed: int64 [batch, length]")
    if known is not None and known.is_file():
        device = device_of(models)
        return _all_kept(calls, [[flag.to(device) for flag in own] for own in read_tree(known)])
    named = [(f"models[{i}]", i, model) for i, model in enumerate(models)]
    networks = [Network(m, calls[0], name, member=i, fold=False) for name, i, m in named]
    flags = [_massive(network, calls, Progress(progress)) for network in networks]
    if known is not None:
        write_tree(known, [[flag.cpu() for flag in own] for own in flags])
    return _all_kept(calls, flags)


def _massive(network: Network, calls: Sequence[Call], progress: Progress) -> list[Tensor]:
    """Per batch bool [batch * length]: some unit's output is massive there."""
    walker = network.walk(calls)
    found: list[Tensor] = []
    units = network.nodes.in_turn(find_stages([network])[0])
    for unit in progress.track(units, f"massive activations of {network.name}"):
        values = walker.value(unit.output)
        pairs = zip(values, calls, strict=True)
        flags = [_flags(value, call, network.member) for value, call in pairs]
        found = [a | b for a, b in zip(found, flags, strict=True)] if found else flags
        release([network])
    return found


def _flags(value: Tensor, call: Call, member: int | None) -> Tensor:
    hidden = value.reshape(1, -1, value.shape[-1])
    rows = rows_for(call, member)
    mask = torch.zeros(hidden.shape[1], dtype=torch.bool, device=hidden.device)
    mask[rows if rows is not None else slice(None)] = True
    return massive(hidden, mask[None])[0]


def _all_kept(calls: Sequence[Call], flags: Sequence[Sequence[Tensor]]) -> list[Joint]:
    """The batches without what is flagged; `flags` are per parent and batch."""
    return [_kept(call, [own[b] for own in flags]) for b, call in enumerate(calls)]


def _kept(call: Call, flags: Sequence[Tensor]) -> Joint:
    """The batch without the positions that are flagged in some parent."""
    everything = torch.arange(len(flags[0]), device=flags[0].device)
    members = [*range(len(flags)), None]
    rows = [r if (r := rows_for(call, m)) is not None else everything for m in members]
    keep = torch.stack([~flag[at] for flag, at in zip(flags, rows, strict=False)]).all(0)
    own = tuple(call_for(call, m) for m in range(len(flags)))
    return Joint((call[0], call[1]), own, tuple(at[keep] for at in rows))
