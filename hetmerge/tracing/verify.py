"""The invariance proof on real weights: permuting a free space leaves the outputs unchanged."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from hetmerge.errors import VerifyError
from hetmerge.tracing.conventions import declared, inference
from hetmerge.tracing.spaces import Space

Permute = Callable[[dict[str, Tensor], dict[int, Tensor]], dict[str, Tensor]]
Inputs = tuple[tuple[Any, ...], dict[str, Any]]


def cycles(space: Space, spaces: Sequence[Space], generator: torch.Generator) -> Tensor:
    """One n-cycle [*outer sizes, size] per outer index: unlike others, never the identity."""
    outer = [spaces[i].size for i in space.structure]
    rows = [_cycle(space.size, generator) for _ in range(math.prod(outer))]
    return torch.stack(rows).reshape(*outer, space.size)


def _cycle(length: int, generator: torch.Generator) -> Tensor:
    order = torch.randperm(length, generator=generator)
    cycle = torch.empty_like(order)
    cycle[order] = order.roll(1)
    return cycle


def proof(
    model: nn.Module,
    inputs: Inputs,
    spaces: Sequence[Space],
    permute: Permute,
    *,
    scale: float,
    tolerance: float | None,
    seed: int,
) -> dict[str, float]:
    """Relative change of the outputs for every free space alone and for all at once.

    Raises:
        VerifyError: a change exceeds the tolerance, or the outputs are not finite.
    """
    trial = Trial(model, inputs)
    generator = torch.Generator().manual_seed(seed)
    with inference(trial.model):
        before, precision = trial.baseline()
        limit = tolerance if tolerance is not None else _tolerance(precision) * scale
        free = [space for space in spaces if space.free]
        drawn = {space.index: cycles(space, spaces, generator) for space in free}
        trials = {space.name: {space.index: drawn[space.index]} for space in free}
        trials["all"] = drawn
        changes: dict[str, float] = {}
        for name, permutations in trials.items():
            changes[name] = relative_change(before, trial.run(permute(trial.state, permutations)))
            if not changes[name] <= limit:
                raise VerifyError(
                    f"permuting {_subject(name)} changes the outputs by {changes[name]:.3g} "
                    f"(relative; tolerance {limit:.3g})"
                )
    return changes


def _subject(name: str) -> str:
    return "all free spaces at once" if name == "all" else f"space {name!r}"


class Trial:
    """A twin of a model that runs with other weights; the model itself is never touched."""

    def __init__(self, model: nn.Module, inputs: Inputs) -> None:
        tensors = [*model.parameters(), *model.buffers()]
        if any(tensor.device.type == "meta" for tensor in tensors):
            raise VerifyError("the model is on the meta device; verification needs real weights")
        self.model = _twin(model)
        floating = [tensor for tensor in tensors if tensor.is_floating_point()]
        if floating and min(torch.finfo(tensor.dtype).bits for tensor in floating) < 32:
            self.model.float()
        self._tensors = {**dict(self.model.named_parameters()), **dict(self.model.named_buffers())}
        self.state = {name: tensor.data for name, tensor in self._tensors.items()}
        self.inputs = pytree.tree_map(self._converted, inputs)

    def _converted(self, leaf: Any) -> Any:
        like = next((t for t in self.state.values() if t.is_floating_point()), None)
        if not isinstance(leaf, Tensor) or like is None:
            return leaf
        return leaf.to(like.device, like.dtype if leaf.is_floating_point() else leaf.dtype)

    def run(self, state: Mapping[str, Tensor]) -> list[Tensor]:
        """Declared outputs with the given weights."""
        # setting data reaches tied weights and shared modules, which functional_call mishandles
        for name, tensor in self._tensors.items():
            tensor.data = state[name]
        args, kwargs = self.inputs
        output = self.model(*args, **kwargs)
        return [leaf for leaf in declared(output, self.model) if isinstance(leaf, Tensor)]

    def baseline(self) -> tuple[list[Tensor], torch.dtype]:
        """Outputs with the model's own weights, and the lowest precision it computes in."""
        with _LowestPrecision() as mode:  # type: ignore[no-untyped-call]
            outputs = self.run(self.state)
        if not outputs:
            raise VerifyError("the model returns no tensor")
        if not all(torch.isfinite(output).all() for output in outputs):
            raise VerifyError("the outputs of the model are not finite")
        return outputs, mode.dtype


def _twin(model: nn.Module) -> nn.Module:
    """A copy whose parameters share memory with the model's but can be replaced one by one."""
    memo: dict[int, Any] = {}
    for parameter in model.parameters():
        memo[id(parameter)] = nn.Parameter(parameter.data, requires_grad=False)
    return copy.deepcopy(model, memo)


class _LowestPrecision(TorchDispatchMode):
    """Watches a run; some models compute parts in single precision whatever their weights are."""

    dtype = torch.float64

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in pytree.tree_leaves(result):
            if isinstance(leaf, Tensor) and leaf.is_floating_point():
                self.dtype = min(self.dtype, leaf.dtype, key=lambda d: torch.finfo(d).bits)
        return result


def _tolerance(dtype: torch.dtype) -> float:
    return {64: 1e-9, 32: 1e-5}.get(torch.finfo(dtype).bits, 5e-2)


def relative_change(before: Sequence[Tensor], after: Sequence[Tensor]) -> float:
    """Largest change over the outputs, each relative to its largest entry."""
    worst = 0.0
    for old, new in zip(before, after, strict=True):
        if old.numel() == 0:
            continue
        difference = (new.double() - old.double()).abs().max().item()
        size = old.double().abs().max().item()
        change = difference / size if size > 0 else difference
        worst = change if math.isnan(change) else max(worst, change)
        if math.isnan(worst):
            raise VerifyError("the outputs of the permuted model are not finite")
    return worst
