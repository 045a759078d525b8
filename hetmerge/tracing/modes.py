"""How a model's own code is read while it is exported."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
import torch.fx.config as fx_config
from torch.overrides import TorchFunctionMode


@contextlib.contextmanager
def without_lines() -> Iterator[None]:
    """Nodes come without the lines of code that made them: finding them takes time, nobody reads
    them."""
    name = "do_not_emit_stack_traces"
    if not hasattr(fx_config, name):  # torch before 2.13
        yield
        return
    before = getattr(fx_config, name)
    setattr(fx_config, name, True)
    try:
        yield
    finally:
        setattr(fx_config, name, before)


class Numbers(TorchFunctionMode):
    """Numbers in a model's own code keep their values on the meta device, lists of them too."""

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in (torch.tensor, torch.as_tensor) and args and _is_written(args[0]):
            made = func(*args, **{**kwargs, "device": "cpu"})
            return made if made.dim() == 0 else made.to(kwargs.get("device") or "meta")
        if func is torch.Tensor.__getitem__ and isinstance(args[1], tuple):
            args = (args[0], tuple(_index(part) for part in args[1]))
        return func(*args, **kwargs)


class Runs(TorchFunctionMode):
    """A list of consecutive numbers as an index, such as `x[..., [-1], :]`, is read as a copy of
    the slice that it is equal to: entries of a slice keep their places."""

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is torch.Tensor.__getitem__ and isinstance(args[1], tuple):
            lists = [part for part in args[1] if _is_list(part)]
            others = [part for part in args[1] if not _is_list(part)]
            plain = all(p is None or p is Ellipsis or isinstance(p, slice) for p in others)
            if plain and len(lists) == 1 and _is_run(lists[0]):
                index = tuple(_as_slice(p) if _is_list(p) else p for p in args[1])
                return func(args[0], index).clone(memory_format=torch.contiguous_format)
        return func(*args, **(kwargs or {}))


def _index(part: Any) -> Any:
    return torch.tensor(part, dtype=torch.int64, device="cpu") if _is_list(part) else part


def _is_written(data: Any) -> bool:
    """Numbers, or lists of them."""
    if isinstance(data, (list, tuple)):
        return all(_is_written(part) for part in data)
    return isinstance(data, (bool, int, float))


def _is_list(part: Any) -> bool:
    return isinstance(part, list) and all(type(i) is int for i in part)


def _is_run(numbers: list[int]) -> bool:
    """Each is the one before and one, and all count from the same end."""
    if not numbers or (numbers[0] < 0) != (numbers[-1] < 0):
        return False
    return numbers == list(range(numbers[0], numbers[0] + len(numbers)))


def _as_slice(numbers: list[int]) -> slice:
    return slice(numbers[0], numbers[-1] + 1 or None)
