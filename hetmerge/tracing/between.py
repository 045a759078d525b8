"""Whether a network treats all of its layers alike, which no shallower network shows."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

Steps = list[tuple[str, tuple[Any, ...]]]
_HARMLESS = {"__new__", "__init__", "__class__", "__getattribute__", "__setattr__", "__delattr__"}
_HARMLESS |= {"__init_subclass__", "__subclasshook__", "__dir__", "__sizeof__"}


def repeats_between(
    model: nn.Module,
    path: str,
    shallower: Callable[[Sequence[nn.Module]], nn.Module],
    inputs: tuple[Any, Any],
) -> bool:
    """No layer looks at its number, and the same happens between any two of them.

    A network's code may do something else behind its third layer. So every layer returns values of
    the right form here without computing them, and what else is computed is compared.

    Args:
        path: of the list of layers.
        shallower: makes a network with these modules for layers.
        inputs: (args, kwargs) on the meta device.
    """
    layers = list(model.get_submodule(path).children())
    with FakeTensorMode(allow_non_fake_inputs=True) as mode, _exporting():
        args, kwargs = pytree.tree_map_only(Tensor, mode.from_tensor, inputs)
        found = list[Any]()
        looked = list[str]()
        numbered = [watched(layer, looked) for layer in layers[:2]]
        numbered[0].register_forward_hook(lambda _, __, output: found.append(output))
        shallower(numbered)(*args, **kwargs)
        if looked:
            return False
        two, three, every = (
            _steps(shallower([_stub(layer, found[0]) for layer in some]), args, kwargs)
            for some in (layers[:2], layers[:3], layers)
        )
    start = next((i for i, (a, b) in enumerate(zip(two, three, strict=False)) if a != b), len(two))
    own = three[start : start + len(three) - len(two)]
    return all(
        steps == two[:start] + own * (count - 2) + two[start:]
        for steps, count in ((three, 3), (every, len(layers)))
    )


@contextmanager
def _exporting() -> Iterator[None]:
    """Code that asks whether it is exported is told so, and takes the way that it takes then."""
    flags = [f for f in ("_is_compiling_flag", "_is_exporting_flag") if hasattr(torch.compiler, f)]
    before = {flag: getattr(torch.compiler, flag) for flag in flags}
    try:
        for flag in flags:
            setattr(torch.compiler, flag, True)
        yield
    finally:
        for flag, value in before.items():
            setattr(torch.compiler, flag, value)


def watched(layer: nn.Module, looked: list[str]) -> nn.Module:
    """A copy of a layer that notes the attributes that hold its number when they are used."""
    tensors = [*layer.parameters(), *layer.buffers()]
    found = copy.deepcopy(layer, {id(tensor): tensor for tensor in tensors})
    for module in found.modules():
        for name, value in list(vars(module).items()):
            if name.endswith("idx") and type(value) is int:
                setattr(module, name, _watched(value, name, looked))
    return found


def _watched(number: int, name: str, looked: list[str]) -> int:
    def noting(method: str) -> Callable[..., Any]:
        def noted(self: int, *given: Any) -> Any:
            looked.append(name)
            return getattr(int, method)(self, *given)

        return noted

    methods = [m for m in dir(int) if callable(getattr(int, m)) and m not in _HARMLESS]
    kind = type("Watched", (int,), {method: noting(method) for method in methods})
    made: int = kind(number)
    looked.clear()
    return made


def _stub(layer: nn.Module, form: Any) -> nn.Module:
    """The layer as its network sees it, which computes nothing."""
    found = copy.copy(layer)
    found.forward = lambda *_, **__: pytree.tree_map_only(Tensor, torch.empty_like, form)
    return found


class _Log(TorchDispatchMode):
    """Notes every operation and what it is given, tensors by their form."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.steps: Steps = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        output = func(*args, **(kwargs or {}))
        leaves = pytree.tree_leaves((args, kwargs, output))
        shown = ((x.shape, x.dtype) if isinstance(x, Tensor) else x for x in leaves)
        self.steps.append((str(func), tuple(shown)))
        return output


def _steps(model: nn.Module, args: Any, kwargs: Any) -> Steps:
    log = _Log()
    with log:
        model(*args, **kwargs)
    return log.steps
