"""A device that is not there: tensors that say they are on it, and compute on the CPU.

What a CUDA device refuses is refused here too: operations on tensors of two devices, conversion to
numpy, addresses. So code that must keep to the device of its tensors can be tested without one.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils import backend_registration
from torch.utils._python_dispatch import return_and_correct_aliasing

NAME = "elsewhere"
aten = torch.ops.aten
COPIES = {aten.copy_.default, aten._to_copy.default}
INDEXED = {  # their second argument may be on the CPU
    aten.index.Tensor,
    aten.index_put.default,
    aten.index_put_.default,
    aten._index_put_impl_.default,
}


@cache
def device() -> torch.device:
    """The device; registered when first asked for."""
    backend_registration._setup_privateuseone_for_python_backend(NAME, _Module())
    LIBRARY.fallback(_made, KEY)
    for packet in (aten.eye, aten.arange):  # torch's own resize what they were given
        for overload in packet.overloads():
            if "out" not in overload:
                ATEN.impl(getattr(packet, overload), _maker(getattr(packet, overload)), KEY)
    return torch.device(NAME, 0)


KEY = "PrivateUse1"
LIBRARY, ATEN = torch.library.Library("_", "IMPL"), torch.library.Library("aten", "IMPL")


def _made(func: Any, *args: Any, **kwargs: Any) -> Any:
    """What makes a tensor there from none."""
    return pytree.tree_map(_outer, func(*args, **{**kwargs, "device": torch.device("cpu")}))


def _maker(func: Any) -> Any:
    return lambda *args, **kwargs: _made(func, *args, **kwargs)


def placed(make: Any) -> Any:
    """torch.tensor, which does not let a backend in Python make its result."""

    def made(data: Any, *, device: Any = None, **kwargs: Any) -> Tensor:
        if device is None or torch.device(device).type != NAME:
            return make(data, device=device, **kwargs)
        return make(data, **kwargs).to(device)

    return made


class _Module(backend_registration._DummyBackendModule):
    """What torch asks of a device for its random numbers, which are the CPU's."""

    def get_rng_state(self, *_: Any) -> Tensor:
        return torch.get_rng_state()

    def set_rng_state(self, state: Tensor, *_: Any) -> None:
        torch.set_rng_state(state)


class Elsewhere(Tensor):
    """A tensor of the device whose numbers are those of `inner`, on the CPU."""

    inner: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor) -> Elsewhere:
        made = Tensor._make_wrapper_subclass(
            cls,
            inner.shape,
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device=device(),
        )
        made.inner = inner
        return made

    def __repr__(self, **_: Any) -> str:
        return f"Elsewhere({self.inner!r})"

    def tolist(self) -> Any:
        return self.inner.tolist()

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        bound = (args[0], *args[2:]) if func in INDEXED else args
        tensors = [x for x in pytree.tree_leaves((bound, kwargs)) if isinstance(x, Tensor)]
        if func not in COPIES and any(x.dim() and not isinstance(x, cls) for x in tensors):
            raise RuntimeError(f"{func}: expected all tensors on {device()}, found one on the CPU")
        target = kwargs.get("device")
        there = target is None or torch.device(target).type == NAME
        if func is aten.copy_.default:
            there = isinstance(args[0], cls)
        if target is not None and there:
            kwargs["device"] = torch.device("cpu")
        given, named = pytree.tree_map(_inner, (tuple(args), kwargs))
        found = func(*given, **named)
        if not there:
            return args[0] if func is aten.copy_.default else found
        return return_and_correct_aliasing(func, args, kwargs, pytree.tree_map(_outer, found))


def _inner(leaf: Any) -> Any:
    return leaf.inner if isinstance(leaf, Elsewhere) else leaf


def _outer(leaf: Any) -> Any:
    return Elsewhere(leaf) if type(leaf) is Tensor else leaf
