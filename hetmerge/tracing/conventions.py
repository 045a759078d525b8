"""How a model is called: inference settings, and which of its outputs count."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree


def is_huggingface(model: nn.Module) -> bool:
    """Whether a model follows the conventions of the transformers library."""
    return any(kind.__module__.startswith("transformers.") for kind in type(model).__mro__)


def declared(output: Any, model: nn.Module) -> list[Any]:
    """The outputs that count: all tensors, or for transformers models ``logits`` or the first."""
    if not is_huggingface(model):
        return list(pytree.tree_leaves(output))
    logits = output.get("logits") if isinstance(output, Mapping) else None
    if logits is None:
        logits = getattr(output, "logits", None)
    return [logits] if logits is not None else list(pytree.tree_leaves(output))[:1]


@contextlib.contextmanager
def inference(model: nn.Module) -> Iterator[None]:
    """Evaluation mode, no gradients and no cache; everything is restored afterwards."""
    modes = {module: module.training for module in model.modules()}
    configs = {id(c): c for c in _configs(model) if getattr(c, "use_cache", False)}
    try:
        for module in modes:
            module.training = False
        for config in configs.values():
            config.use_cache = False
        with torch.no_grad():
            yield
    finally:
        for module, training in modes.items():
            module.training = training
        for config in configs.values():
            config.use_cache = True


def _configs(model: nn.Module) -> Iterator[Any]:
    for module in model.modules():
        config = getattr(module, "config", None)
        if config is not None and hasattr(config, "__dict__"):
            yield config
            yield from (c for c in vars(config).values() if hasattr(c, "use_cache"))
