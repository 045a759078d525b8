"""Parents whose embeddings and output head are one tensor beside parents that have two.

A network with two equal tensors computes the same, so where one parent has two, all get them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from torch import nn

from hetmerge.fields import with_fields
from hetmerge.huggingface import filled, is_pretrained
from hetmerge.lazy import Checkpoint, empty
from hetmerge.network import state_of
from hetmerge.weights import OnDisk

TIED = "tie_word_embeddings"


def untied(
    models: Sequence[nn.Module | Checkpoint],
) -> tuple[list[nn.Module | Checkpoint], list[str]]:
    """The parents; tied ones beside others with a tensor for each of the tied names.

    Returns:
        The parents, and remarks on those that change.
    """
    found: list[nn.Module | Checkpoint] = list(models)
    notes: list[str] = []
    twins = [_twins(model) for model in models]
    if all(twins) or not all(is_pretrained(_module(model)) for model in models):
        return found, notes
    for m, names in enumerate(twins):
        apart = _apart(models[m], names) if names else None
        if apart is not None:
            found[m] = apart
            notes.append(
                f"models[{m}]: its tied tensors, such as {next(iter(names))!r}, are taken as two, "
                "because another parent has two"
            )
    return found, notes


def _module(model: nn.Module | Checkpoint) -> Any:
    return model.module if isinstance(model, Checkpoint) else model


def _twins(model: nn.Module | Checkpoint) -> dict[str, str]:
    """Name of a parameter that is another one's too -> that one's first name."""
    first: dict[int, str] = {}
    named = _module(model).named_parameters(remove_duplicate=False)
    return {name: known for name, p in named if (known := first.setdefault(id(p), name)) != name}


def _apart(model: nn.Module | Checkpoint, twins: dict[str, str]) -> nn.Module | Checkpoint | None:
    """The same function with a tensor for each name; None where its class always ties them."""
    module = _module(model)
    config = with_fields(module.config, {TIED: False})
    free = empty(type(module), config)
    if _twins(free):
        return None
    if not isinstance(model, Checkpoint):
        state = state_of(module)
        return filled(module, config, {n: t.clone() if n in twins else t for n, t in state.items()})
    known = model.state
    own = {name: known[name] for name in known if name not in known.stored}
    stored = {n: replace(p, twin=n) if n in twins else p for n, p in known.stored.items()}
    state = OnDisk(stored, own, known.dtype, known.label, device=known.device)
    return Checkpoint(model.folder, free, state)
