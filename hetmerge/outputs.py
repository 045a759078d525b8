"""Partitions of spaces that must keep their order: inputs, constants, and the models' outputs."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from hetmerge.errors import InputError, PlanError
from hetmerge.partition import Partition, identity, union

OUTPUTS = ("average", "concat")


def is_output(pins: Sequence[str]) -> bool:
    """The only reason to keep the order is that the axis is the model's output."""
    return bool(pins) and all(pin.startswith(("output ", "the output")) for pin in pins)


def is_written(pins: Sequence[str]) -> bool:
    """The axis is the model's output, besides whatever else it is (a tied embedding is both)."""
    return any(pin.startswith(("output ", "the output")) for pin in pins)


def output_partition(
    name: str,
    pins: Sequence[str],
    sizes: dict[int, int],
    outputs: str,
    labels: Sequence[Sequence[str]] | None,
) -> Partition:
    """Average outputs that mean the same, keep others side by side.

    Raises:
        InputError: unknown option, or labels that do not fit.
        PlanError: sizes differ where the order is fixed.
    """
    if outputs not in OUTPUTS:
        raise InputError(f"outputs: got {outputs!r}; allowed: {', '.join(OUTPUTS)}")
    if is_output(pins):
        if labels is not None:
            return _by_name(name, sizes, labels)
        if outputs == "concat":
            return union(sizes)
    if len(set(sizes.values())) > 1:
        shown = ", ".join(f"models[{m}]: {n}" for m, n in sizes.items())
        if is_output(pins):
            raise PlanError(
                f"outputs: the models' outputs differ in size ({shown}); average needs outputs "
                "that mean the same: use outputs='concat', or labels= with the name of every output"
            )
        raise PlanError(
            f"space {name!r} must keep its order ({'; '.join(sorted(set(pins)))}) "
            f"but differs in size ({shown}); allowed: equal sizes"
        )
    return identity(next(iter(sizes.values())), sizes)


def _by_name(name: str, sizes: dict[int, int], labels: Sequence[Sequence[str]]) -> Partition:
    names: dict[str, int] = {}
    found = {}
    for m, count in sizes.items():
        mine = list(labels[m]) if m < len(labels) else []
        if len(mine) != count:
            raise InputError(
                f"labels: models[{m}] has {count} outputs in {name!r}, got {len(mine)} names"
            )
        if len(set(mine)) != count:
            twice = next(x for x in mine if mine.count(x) > 1)
            raise InputError(f"labels: models[{m}] names {twice!r} twice; names must be unique")
        found[m] = torch.tensor([names.setdefault(x, len(names)) for x in mine])
    return Partition(len(names), found)
