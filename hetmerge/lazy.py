"""A Hugging Face checkpoint as a parent: its shapes now, its tensors when they are needed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from hetmerge.errors import CheckpointError
from hetmerge.layouts import in_layout_of
from hetmerge.pretrained import class_of, config_of, refuse_quantized
from hetmerge.shards import Stored, stored_tensors
from hetmerge.weights import OnDisk, tensors_of

LARGE = 1 << 30  # numbers of a parameter


class NeedsMemory(CheckpointError):
    """A checkpoint that can be merged as a module in memory only."""


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """A parent whose weights stay on disk; give it wherever a parent's module may be given.

    Attributes:
        folder: where it lies.
        module: a module of its class whose parameters are on the meta device.
        state: its tensors, read one by one.
    """

    folder: Path
    module: nn.Module = field(repr=False)
    state: OnDisk = field(repr=False)


def open_checkpoint(
    folder: str | Path,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> Checkpoint:
    """Open a Hugging Face directory; headers and configuration are read, no weights.

    Args:
        folder: with config.json and .safetensors files.
        dtype: what the weights are computed in, whatever they are stored in.
        device: where they are computed with.

    Raises:
        CheckpointError: as :func:`hetmerge.shards.stored_tensors`; an unknown class; a tensor that
            the model needs is missing or has another shape.
        NeedsMemory: it can be merged, but not from disk.
    """
    folder = Path(folder)
    refuse_quantized(folder)
    stored = stored_tensors(folder)
    module = empty_of(folder)
    if any(isinstance(part, nn.modules.batchnorm._BatchNorm) for part in module.modules()):
        raise NeedsMemory(
            f"{folder}: has BatchNorms, whose statistics are folded into the layers before them, "
            "which needs the model in memory; load it with transformers and give the module"
        )
    buffers = {n: _as(t, dtype) for n, t in module.named_buffers() if n not in stored}
    kept = set(module.state_dict())
    buffers |= {n: _as(t, dtype) for n, t in module.named_buffers() if n not in kept}
    places = _places(folder, module, stored, set(buffers))
    state = OnDisk(places, buffers, dtype, str(folder), device=device)
    return Checkpoint(folder, module, state)


def _as(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """Computed buffers keep a precision above the weights'."""
    wide = tensor.is_floating_point() and dtype == torch.float64
    return tensor.to(dtype) if wide else tensor


def empty_of(folder: Path) -> nn.Module:
    """The model that a directory's configuration speaks of, as :func:`empty` makes it."""
    config = config_of(folder)
    return empty(class_of(folder), config)


def empty(kind: type[nn.Module], config: Any) -> nn.Module:
    """A model of this class in eval mode: parameters on the meta device, buffers as computed."""
    with torch.random.fork_rng(devices=[]), _parameters_on_meta():
        return kind(config).eval().requires_grad_(False)


@contextmanager
def _parameters_on_meta() -> Iterator[None]:
    """Every parameter loses its memory, which no one has touched, as its module takes it."""
    register = nn.Module.register_parameter

    def without_memory(self: nn.Module, name: str, param: nn.Parameter | None) -> None:
        if param is not None and param.device.type != "meta":
            param = nn.Parameter(param.detach().to("meta"), param.requires_grad)
        register(self, name, param)

    nn.Module.register_parameter = without_memory  # type: ignore[method-assign]
    try:
        with _LargeOnMeta():
            yield
    finally:
        nn.Module.register_parameter = register  # type: ignore[method-assign]


class _LargeOnMeta(TorchFunctionMode):
    """Tensors that no machine lends without touching them, such as all experts of a layer."""

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is torch.empty and kwargs.get("device") is None:
            found = func(*args, **{**kwargs, "device": "meta"})
            if found.numel() >= LARGE:
                return found
        return func(*args, **kwargs)


def _places(
    folder: Path, module: nn.Module, stored: Mapping[str, Stored], computed: set[str]
) -> dict[str, Stored]:
    """Where each tensor of the module lies; tied ones share a place."""
    known = in_layout_of(module, stored, folder)
    found: dict[str, Stored] = {}
    owners: dict[int, Stored] = {}
    lost: list[tuple[str, Tensor]] = []
    for name, tensor in tensors_of(module):
        if name in computed:
            continue
        place = known.get(name)
        if place is None:
            lost.append((name, tensor))
            continue
        if place.shape != tuple(tensor.shape):
            raise CheckpointError(
                f"{folder}: tensor {name!r} is {list(place.shape)}, config.json needs "
                f"{list(tensor.shape)}"
            )
        found[name] = owners[id(tensor)] = place
    for name, tensor in lost:
        if id(tensor) not in owners:
            raise CheckpointError(
                f"{folder}: holds no tensor {name!r} (but {len(stored)} others, such as "
                f"{next(iter(stored), None)!r})"
            )
        found[name] = owners[id(tensor)]
    return found
