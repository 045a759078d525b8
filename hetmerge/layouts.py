"""Tensors that a checkpoint holds in another layout than its model: experts one by one, say."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hetmerge.errors import CheckpointError
from hetmerge.shards import Stored

Parts = tuple[tuple[str, tuple[Stored, ...]], ...]  # per pattern of names, in their order


@dataclass(frozen=True, eq=False)
class Layout:
    """How transformers makes tensors of a model from those that it reads.

    Attributes:
        converter: its steps.
        module: the model, whose configuration some of them look at.
        name: of the first tensor that is made.
        by_rows: row i of what is made comes from the i-th tensor of every pattern alone.
    """

    converter: Any
    module: Any
    name: str

    def made(self, parts: Mapping[str, Sequence[Tensor]]) -> dict[str, Tensor]:
        """The tensors that come of these."""
        converter = copy.copy(self.converter)
        converter.collected_tensors = {pattern: list(found) for pattern, found in parts.items()}
        found = converter.convert(self.name, model=self.module, config=self.module.config)
        return {n: t[0] if isinstance(t, list) else t for n, t in found.items()}

    @property
    def by_rows(self) -> bool:
        first, *others = self.converter.operations
        touched = {
            getattr(step, key)
            for step in others
            for key in ("dim", "dim0", "dim1")
            if hasattr(step, key)
        }
        stacks = type(first).__name__ == "MergeModulelist" and first.dim == 0
        known = {type(step).__name__ for step in others} <= {"Concatenate", "Transpose"}
        return stacks and known and all(dim > 0 for dim in touched)


@dataclass(frozen=True)
class Fused(Stored):
    """A tensor that is made from several when it is read.

    `path`, `start` and `stop` tell its first piece's shard and its size; what it is made from tells
    it apart from others.

    Attributes:
        name: of the tensor that is made.
        parts: what it is made from.
        layout: how.
    """

    name: str = ""
    parts: Parts = ()
    layout: Layout | None = field(default=None, compare=False, repr=False)

    def pieces(self) -> Iterator[Stored]:
        """What it is read from."""
        for _, places in self.parts:
            yield from places

    def part(self, rows: range) -> Stored:
        """Consecutive rows as a tensor by itself.

        Raises:
            CheckpointError: its rows come from everything that it is made from.
        """
        assert self.layout
        if not self.layout.by_rows:
            raise CheckpointError(
                f"{self.path.parent}: tensor {self.name!r} is stored in another layout and cannot "
                "be taken apart; load the model once with transformers and write it with "
                "save_pretrained(folder, save_original_format=False)"
            )
        size = (self.stop - self.start) // self.shape[0] * len(rows)
        parts = tuple((p, places[rows.start : rows.stop]) for p, places in self.parts)
        return replace(self, shape=(len(rows), *self.shape[1:]), stop=size, parts=parts)

    def read(self, rows: Tensor | None = None) -> Tensor:
        """The tensor, or some of its rows: int64 [n].

        Raises:
            CheckpointError: as :meth:`Stored.read`.
        """
        assert self.layout
        if not self.layout.by_rows:
            made = self._made(self.parts)
            return made if rows is None else made[rows.cpu()]
        wanted = range(self.shape[0]) if rows is None else rows.tolist()
        found = torch.empty(len(wanted), *self.shape[1:], dtype=self.dtype)
        for place, row in enumerate(wanted):  # one at a time: no second copy of all
            found[place] = self._made(tuple((p, (own[row],)) for p, own in self.parts))[0]
        return found

    def _made(self, parts: Parts) -> Tensor:
        assert self.layout
        read = {pattern: [place.read() for place in places] for pattern, places in parts}
        return self.layout.made(read)[self.name]


def in_layout_of(
    module: nn.Module, stored: Mapping[str, Stored], folder: Path
) -> dict[str, Stored]:
    """The stored tensors under the names, and in the layout, of this version of transformers.

    Args:
        module: the model, on the meta device.
        folder: of the checkpoint, for messages.

    Raises:
        CheckpointError: what is stored cannot be brought into the model's layout.
    """
    try:
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import (
            WeightRenaming,
            dot_natural_key,
            rename_source_key,
        )
    except ImportError:  # before transformers 5 names were what they are
        return dict(stored)
    model: Any = module
    known = model.state_dict()
    steps = get_model_conversion_mapping(model)
    renamings = [step for step in steps if isinstance(step, WeightRenaming)]
    converters: list[Any] = [step for step in steps if not isinstance(step, WeightRenaming)]
    found: dict[str, Stored] = {}
    gathered: dict[str, dict[str, list[Stored]]] = {}
    for name in sorted(stored, key=dot_natural_key):
        new, pattern = rename_source_key(
            name, renamings, converters, model.base_model_prefix, known
        )
        if name in known:
            found[name] = stored[name]
        elif pattern is not None:
            gathered.setdefault(new, {}).setdefault(pattern, []).append(stored[name])
        else:
            found[new] = stored[name]
    by_pattern = {p: converter for converter in converters for p in converter.source_patterns}
    for new, parts in gathered.items():
        layout = Layout(copy.deepcopy(by_pattern[next(iter(parts))]), model, new)
        found.update(_fused(layout, parts, folder))
    return found


def _fused(
    layout: Layout, parts: Mapping[str, Sequence[Stored]], folder: Path
) -> dict[str, Stored]:
    first = next(iter(parts.values()))[0]
    shapes = {
        pattern: [torch.empty(p.shape, dtype=p.dtype, device="meta") for p in places]
        for pattern, places in parts.items()
    }
    try:
        made = layout.made(shapes)
    except Exception as error:  # whatever the steps of a family raise for tensors that do not fit
        raise CheckpointError(
            f"{folder}: {layout.name!r} cannot be made from the tensors that are stored for it "
            f"({' '.join(str(error).split())[:200]})"
        ) from error
    kept = tuple((pattern, tuple(places)) for pattern, places in parts.items())
    return {
        name: Fused(
            first.path,
            tensor.dtype,
            tuple(tensor.shape),
            0,
            tensor.numel() * tensor.element_size(),
            name=name,
            parts=kept,
            layout=layout,
        )
        for name, tensor in made.items()
    }
