"""What the zoo says about one model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

Inputs = tuple[tuple[Any, ...], dict[str, Any]]


@dataclass(frozen=True)
class Case:
    """A model, its inputs, and what is known about it without running the analysis."""

    name: str
    build: Callable[[], nn.Module]
    inputs: Callable[[int], Inputs]  # seed -> args, kwargs
    free: int | None = None  # number of free spaces, counted by hand
    single: bool = False  # the model casts to single precision itself
    dtype: torch.dtype = torch.float64
    unknown: frozenset[str] = frozenset()  # operators that have no rule
    soft: frozenset[str] = frozenset()  # pinned although free, with the reason beside the case
    idle: frozenset[str] = frozenset()  # free, and the output does not depend on its order


def tensor(*shape: int) -> Callable[[int], Inputs]:
    """Random inputs with a batch of two."""

    def draw(seed: int) -> Inputs:
        generator = torch.Generator().manual_seed(seed)
        return (torch.randn(2, *shape, generator=generator, dtype=torch.float64),), {}

    return draw


def image(size: int = 16) -> Callable[[int], Inputs]:
    return tensor(3, size, size)


def tokens(vocabulary: int, length: int = 8, **others: Any) -> Callable[[int], Inputs]:
    """Random token ids with a batch of two."""

    def draw(seed: int) -> Inputs:
        generator = torch.Generator().manual_seed(seed)
        ids = torch.randint(3, vocabulary, (2, length), generator=generator)
        return (), {"input_ids": ids, **others}

    return draw


def prepared(case: Case, seed: int = 1) -> nn.Module:
    """The model in evaluation mode, with generic values in every learned tensor.

    On initial weights (norms of one, biases of zero) an oracle would prove little.
    """
    torch.manual_seed(0)
    model = case.build().double().eval()
    generator = torch.Generator().manual_seed(seed)

    def normal(like: Tensor) -> Tensor:
        return torch.randn(like.shape, generator=generator, dtype=torch.float64)

    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() < 2:
                parameter.copy_(1 + 0.4 * normal(parameter))
            else:
                fan = parameter.numel() / max(parameter.shape)
                parameter.copy_(1.5 * normal(parameter) / max(1.0, fan) ** 0.5)
        for name, buffer in model.named_buffers():
            if name.endswith("running_mean"):
                buffer.copy_(0.3 * normal(buffer))
            elif name.endswith("running_var"):
                buffer.copy_(0.5 + normal(buffer).abs())
    return model.to(case.dtype)
