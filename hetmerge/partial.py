"""A partial merge as a module: one trunk, then one head per parent."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from hetmerge.errors import InputError
from hetmerge.pieces import Steps


class ReadOff(nn.Module):
    """A parent's own features from those of the trunk: a choice of them, or a linear map.

    Args:
        dim: dimension of the features.
        sources, targets: features of the trunk and of the parent.
        dense: a linear map `weight` [targets, sources] and `bias` [targets]; otherwise the parent's
            feature i is the trunk's feature `index[i]`.
    """

    def __init__(self, dim: int, sources: int, targets: int, dense: bool, dtype: str) -> None:
        super().__init__()
        self.dim, self.dense = dim, dense
        if dense:
            kind = getattr(torch, dtype)
            self.weight = nn.Parameter(torch.zeros(targets, sources, dtype=kind))
            self.bias = nn.Parameter(torch.zeros(targets, dtype=kind))
        else:
            self.register_buffer("index", torch.zeros(targets, dtype=torch.int64))

    def forward(self, stream: Tensor) -> Tensor:
        if not self.dense:
            assert isinstance(self.index, Tensor)
            return stream.index_select(self.dim, self.index)
        return F.linear(stream.movedim(self.dim, -1), self.weight, self.bias).movedim(-1, self.dim)


class Head(nn.Module):
    """The rest of one parent: its features read off the trunk, then its own operations.

    `forward` takes the trunk's value and the model's inputs, and returns the list of outputs.
    """

    def __init__(self, read: dict[str, Any], rest: dict[str, Any]) -> None:
        super().__init__()
        self.read = ReadOff(**read)
        self.rest = Steps(rest)

    def forward(self, stream: Tensor, *inputs: Any) -> list[Tensor]:
        return self.rest(self.read(stream), *inputs)  # type: ignore[no-any-return]


class Join(nn.Module):
    """One output of the heads, averaged where it means the same and side by side where not.

    Merged output c is the sum over heads of factor[c] * (y[index[c]] - mean) / deviation, with a
    factor of 0 where a head does not have it.

    Args:
        dim: dimension of the outputs.
        width: merged outputs.
        heads: number of heads.
    """

    def __init__(self, dim: int, width: int, heads: int, dtype: str) -> None:
        super().__init__()
        self.dim = dim
        kind = getattr(torch, dtype)
        self.register_buffer("index", torch.zeros(heads, width, dtype=torch.int64))
        self.register_buffer("factor", torch.zeros(heads, width, dtype=kind))
        self.register_buffer("mean", torch.zeros(heads, dtype=kind))
        self.register_buffer("deviation", torch.ones(heads, dtype=kind))

    def forward(self, outputs: Sequence[Tensor]) -> Tensor:
        total: Any = 0
        for m, output in enumerate(outputs):
            standard = (output - self.mean[m]) / self.deviation[m]  # type: ignore[index]
            chosen = standard.index_select(self.dim, self.index[m])  # type: ignore[index]
            shape = [1] * output.dim()
            shape[self.dim] = -1
            total = total + chosen * self.factor[m].reshape(shape)  # type: ignore[index]
        merged: Tensor = total
        return merged


class PartialModel(nn.Module):
    """One trunk up to a unit, and behind it the rest of every parent as a head of its own.

    Takes what the parents take. Returns what the whole merge would: the parents' outputs, averaged
    or side by side; with `head=` the outputs of that head alone, which are the parent's own. A
    tensor where the parents return one (the logits of a Hugging Face model), else a tuple.

    Attributes:
        trunk: the merged operations.
        heads: name ("parent0", ... unless `names` says otherwise) -> the rest of that parent.
        program: the operations as plain data, from which the module is built.
    """

    def __init__(self, program: dict[str, Any]) -> None:
        super().__init__()
        self.program = program
        self.trunk = Steps(program["trunk"])
        self.heads = nn.ModuleDict({n: Head(**spec) for n, spec in program["heads"].items()})
        self.joins = nn.ModuleList(Join(**spec) for spec in program["joins"])

    def forward(
        self, *args: Any, head: str | None = None, **kwargs: Any
    ) -> Tensor | tuple[Tensor, ...]:
        if head is not None and head not in self.heads:
            raise InputError(f"head: got {head!r}; allowed: {', '.join(self.heads)}")
        inputs = self._flat(args, kwargs)
        (stream,) = self.trunk(*inputs)
        if head is not None:
            outputs = self.heads[head](stream, *inputs)
        else:
            each = [one(stream, *inputs) for one in self.heads.values()]
            outputs = [join([y[i] for y in each]) for i, join in enumerate(self.joins)]
        return outputs[0] if len(outputs) == 1 else tuple(outputs)

    def branch(self, head: str) -> nn.Module:
        """The trunk with one head, as a module that shares their tensors."""
        if head not in self.heads:
            raise InputError(f"head: got {head!r}; allowed: {', '.join(self.heads)}")
        return Branch(self, head)

    def _flat(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[Any]:
        names = self.program["trunk"]["inputs"]
        given = pytree.tree_leaves(args)
        rest = names[len(given) :]
        if len(given) > len(names) or set(kwargs) - set(rest):
            raise InputError(
                f"inputs: got {len(given)} by position and {sorted(kwargs)} by name; "
                f"allowed: {', '.join(names)}"
            )
        return [*given, *(kwargs.get(name) for name in rest)]


class Branch(nn.Module):
    """A partial model that answers with one head."""

    def __init__(self, model: PartialModel, head: str) -> None:
        super().__init__()
        self.model, self.head = model, head

    def forward(self, *args: Any, **kwargs: Any) -> Tensor | tuple[Tensor, ...]:
        return self.model(*args, head=self.head, **kwargs)  # type: ignore[no-any-return]
