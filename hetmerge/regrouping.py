"""Parents with grouped-query attention beside others: one form for all of them.

Query heads that share keys and values compute the same if each has a copy of its own. So groups are
repeated until every parent has them, or none has.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from hetmerge.fields import said, with_fields
from hetmerge.huggingface import filled, is_pretrained
from hetmerge.lazy import Checkpoint, empty
from hetmerge.network import state_of
from hetmerge.weights import Repeat, tensors_of

HEADS, GROUPS = "num_attention_heads", "num_key_value_heads"


def regrouped(
    models: Sequence[nn.Module | Checkpoint],
) -> tuple[list[nn.Module | Checkpoint], list[str]]:
    """The parents; those whose groups do not go with the others' compute the same with more.

    Returns:
        The parents, and remarks on those that change.
    """
    found, notes = list(models), []
    for m, groups in enumerate(_wanted(models)):
        larger = _with_groups(models[m], groups) if groups is not None else None
        if larger is not None:
            found[m] = larger
            notes.append(
                f"models[{m}]: keys and values of {_counts(models[m])[1]} groups are repeated for "
                f"{groups}, because another parent has no such groups"
            )
    return found, notes


def _wanted(models: Sequence[nn.Module | Checkpoint]) -> list[int | None]:
    """Per parent, the number of groups it should have; None: it stays as it is.

    One head per group in one parent: in all. One group in one parent and several in another: the
    fewest that the first can be divided into.
    """
    counts = [_counts(model) for model in models]
    alone = [heads > 1 and groups == heads for heads, groups in counts]
    several = [groups > 1 for _, groups in counts]
    if any(alone):
        return [h if 0 < g < h else None for h, g in counts]
    if not any(several):
        return [None] * len(counts)
    split = [next((d for d in range(2, h) if h % d == 0), h) for h, _ in counts]
    if any(g == 1 and d == h for (h, g), d in zip(counts, split, strict=True)):
        return [h if 0 < g < h else None for h, g in counts]
    return [d if g == 1 else None for (_, g), d in zip(counts, split, strict=True)]


def _counts(model: nn.Module | Checkpoint) -> tuple[int, int]:
    """Heads and groups of a transformers model that names both; else (0, 0)."""
    module: Any = model.module if isinstance(model, Checkpoint) else model
    config = module.config if isinstance(module, nn.Module) and is_pretrained(module) else None
    heads, groups = said(config, HEADS), said(config, GROUPS)
    return (heads, groups) if isinstance(heads, int) and isinstance(groups, int) else (0, 0)


def _with_groups(model: nn.Module | Checkpoint, groups: int) -> nn.Module | Checkpoint | None:
    """The same function with so many groups; None where its layout does not allow it."""
    module: Any = model.module if isinstance(model, Checkpoint) else model
    config = with_fields(module.config, {GROUPS: groups})
    larger = empty(type(module), config)
    repeats = _repeats(module, larger, _counts(model)[1], groups)
    if repeats is None:
        return None
    if isinstance(model, Checkpoint):
        return Checkpoint(model.folder, larger, model.state.repeated(repeats))
    state = {n: repeats[n].of(t) if n in repeats else t for n, t in state_of(module).items()}
    return filled(module, config, state)


def _repeats(old: nn.Module, new: nn.Module, groups: int, wanted: int) -> dict[str, Repeat] | None:
    """Tensor -> how its rows are repeated; None if more changes than numbers of rows."""
    before, found = dict(tensors_of(old)), {}
    for name, tensor in tensors_of(new):
        mine = before[name].shape
        if tensor.shape == mine:
            continue
        if tensor.shape[1:] != mine[1:] or tensor.shape[0] * groups != mine[0] * wanted:
            return None
        found[name] = Repeat(groups, wanted // groups)
    return found
