"""Merged Hugging Face models: a valid configuration of the same family, and modules built from it."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from hetmerge.errors import PlanError
from hetmerge.setting import Setting

_TRIALS = 512


def is_pretrained(model: nn.Module) -> bool:
    """The module is a transformers model, with a configuration that describes it."""
    return hasattr(model, "config") and hasattr(model, "save_pretrained")


def rebuild(setting: Setting, widths: Mapping[int, int], state: Mapping[str, Tensor]) -> nn.Module:
    """A model of the base parent's class and adjusted configuration that holds these tensors.

    Configuration fields follow the sizes of spaces and the depths of stages they equal in every
    parent; among what is left open, the first choice whose tensors have the merged shapes is taken.

    Raises:
        PlanError: no configuration of the family has these shapes.
    """
    base: Any = setting.skeleton.model
    wanted = {name: tuple(tensor.shape) for name, tensor in state.items()}
    fields = _open_fields(setting, widths)
    for choice in itertools.islice(_choices(fields), _TRIALS):
        config = copy.deepcopy(base.config)
        for name, value in choice.items():
            setattr(config, name, value)
        shapes = _shapes(type(base), config)
        if shapes and all(shapes.get(name) == shape for name, shape in wanted.items()):
            return _filled(type(base), config, state, base)
    raise PlanError(
        f"no configuration of {type(base).__name__} has the merged shapes; "
        "the family needs sizes that this merge does not give: try width='max'"
    )


def _open_fields(setting: Setting, widths: Mapping[int, int]) -> dict[str, list[Any]]:
    """Configuration field -> candidate values, likeliest first."""
    base: Any = setting.skeleton.model
    sizes = [
        (
            [
                setting.width(m, k) if k in link.spaces else None
                for m, link in enumerate(setting.links)
            ],
            w,
        )
        for k, w in widths.items()
    ]
    for s, stage in enumerate(setting.stages):
        counts = [len(stages[s].units) for stages in setting.alignment.stages]
        sizes.append((list(counts), len(stage.units)))
    configs = [p.model.config.to_dict() for p in setting.parents]  # type: ignore[union-attr, operator]
    fields: dict[str, list[Any]] = {}
    for name, value in base.config.to_dict().items():
        theirs = [config.get(name) for config in configs]
        if isinstance(value, int) and not isinstance(value, bool):
            fields[name] = _candidates(value, theirs, sizes)
        elif isinstance(value, list) and value and all(type(v) is int for v in value):
            columns = []
            for i, item in enumerate(value):
                column = [t[i] if isinstance(t, list) and i < len(t) else None for t in theirs]
                columns.append(_candidates(item, column, sizes))
            fields[name] = [list(v) for v in itertools.islice(itertools.product(*columns), _TRIALS)]
    return {
        name: values
        for name, values in fields.items()
        if len(values) > 1 or values[0] != base.config.to_dict()[name]
    }


def _candidates(value: int, theirs: list[Any], sizes: list[tuple[list[Any], int]]) -> list[int]:
    found = [
        merged
        for parents, merged in sizes
        if all(p is None or p == t for p, t in zip(parents, theirs, strict=True))
        and any(p is not None for p in parents)
    ]
    heads = [
        merged * (t // p)
        for parents, merged in sizes
        for p, t in zip(parents, theirs, strict=True)
        if p and isinstance(t, int) and t > p and t % p == 0
    ]
    return list(
        dict.fromkeys([*found, value, *(t for t in theirs if isinstance(t, int)), *heads[:4]])
    )


def _choices(fields: dict[str, list[Any]]) -> Iterator[dict[str, Any]]:
    """Every combination, those closest to the likeliest one first."""
    names = list(fields)
    first = {name: values[0] for name, values in fields.items()}
    yield first
    for count in range(1, 4):
        for changed in itertools.combinations(names, count):
            for values in itertools.product(*(fields[name][1:] for name in changed)):
                yield {**first, **dict(zip(changed, values, strict=True))}


def _shapes(kind: type[nn.Module], config: Any) -> dict[str, tuple[int, ...]] | None:
    try:
        with torch.device("meta"):
            model = kind(config)
    except (ValueError, RuntimeError, ZeroDivisionError, AssertionError, TypeError, KeyError):
        return None
    pairs = [*model.named_parameters(remove_duplicate=False)]
    return {name: tuple(t.shape) for name, t in (*pairs, *model.named_buffers())}


def _filled(
    kind: type[nn.Module], config: Any, state: Mapping[str, Tensor], base: nn.Module
) -> nn.Module:
    model = kind(config)
    first = next(base.parameters())
    model.to(device=first.device, dtype=first.dtype).eval().requires_grad_(False)
    own = dict(model.named_parameters(remove_duplicate=False)) | dict(model.named_buffers())
    with torch.no_grad():
        for name, tensor in state.items():
            own[name].copy_(tensor)
    return model
