"""Parameter-free shortcuts between different widths, made explicit as 1x1 convolutions.

A shortcut that subsamples space and pads channels with zeros ties the channel orders of two stages
together and cannot change its width. The convolution that computes the same map has neither limit.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from hetmerge.errors import InputError
from hetmerge.execution import flat_inputs


def expose_shortcuts(
    model: nn.Module, call: tuple[tuple[Any, ...], dict[str, Any]]
) -> tuple[str, ...]:
    """Replace, in place, every module that is exactly a strided 1x1 channel map.

    A module qualifies if it has no parameters, buffers or children, is called once with one
    [batch, channels, height, width] tensor, changes the number of channels, and agrees with the
    convolution on random inputs bit for bit.

    Returns:
        The paths of the replaced modules.
    """
    seen = _observe(model, call)
    replaced = []
    for path, calls in seen.items():
        module = model.get_submodule(path)
        if len(calls) == 1 and (conv := _as_convolution(module, *calls[0])) is not None:
            parent, _, name = path.rpartition(".")
            setattr(model.get_submodule(parent), name, conv)
            replaced.append(path)
    return tuple(replaced)


def shortcut_convolution(width_in: int, width_out: int, stride: tuple[int, int]) -> nn.Conv2d:
    """The convolution that takes a shortcut's place."""
    with torch.random.fork_rng(devices=[]):  # a module draws initial weights; nobody uses them
        conv = nn.Conv2d(width_in, width_out, 1, stride=stride, bias=False)
    return conv.requires_grad_(False)


def _observe(
    model: nn.Module, call: tuple[tuple[Any, ...], dict[str, Any]]
) -> dict[str, list[Any]]:
    seen: dict[str, list[Any]] = {}
    hooks = []
    for path, module in model.named_modules():
        bare = not list(module.children()) and not list(module.parameters())
        if path and bare and not list(module.buffers()):
            seen[path] = []

            def hook(_: nn.Module, args: Any, output: Any, record: list[Any] = seen[path]) -> None:
                record.append((args, output))

            hooks.append(module.register_forward_hook(hook))
    candidates = [
        p for p in seen if not type(model.get_submodule(p)).__module__.startswith("torch.")
    ]
    try:
        with torch.no_grad():
            small = _few(call)
            model(*small[0], **small[1])
    except Exception as error:
        shapes = [tuple(v.shape) if isinstance(v, Tensor) else v for v in flat_inputs(*call)]
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(
            f"batches: {type(model).__name__} cannot take inputs {shapes}: {first}"
        ) from error
    finally:
        for handle in hooks:
            handle.remove()
    return {path: seen[path] for path in candidates}


def _few(call: tuple[tuple[Any, ...], dict[str, Any]]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The first two samples of a batch whose tensors all have one row per sample."""
    tensors = [v for v in flat_inputs(*call) if isinstance(v, Tensor)]
    rows = {t.shape[0] if t.dim() else 0 for t in tensors}
    if len(rows) != 1 or min(rows) <= 2:
        return call
    return tree_map_only(Tensor, lambda t: t[:2], call)  # type: ignore[no-any-return]


def _as_convolution(module: nn.Module, args: Any, output: Any) -> nn.Conv2d | None:
    if len(args) != 1 or not isinstance(args[0], Tensor) or not isinstance(output, Tensor):
        return None
    x = args[0]
    if x.dim() != 4 or output.dim() != 4 or x.shape[1] == output.shape[1]:
        return None
    stride = tuple(-(-a // b) for a, b in zip(x.shape[2:], output.shape[2:], strict=True))
    conv = shortcut_convolution(x.shape[1], output.shape[1], stride).to(x.dtype)  # type: ignore[arg-type]
    # On the CPU: a GPU's convolutions may round their inputs.
    probe = torch.eye(x.shape[1], dtype=x.dtype)[:, :, None, None].expand(-1, -1, *x.shape[2:])
    trial = torch.randn(x.shape, generator=torch.Generator().manual_seed(0)).to(x.dtype)
    with torch.no_grad():
        columns = module(probe)[:, :, 0, 0]
        if columns.shape != (x.shape[1], output.shape[1]):
            return None
        conv.weight.copy_(columns.T[:, :, None, None])
        same = torch.equal(conv(trial), module(trial))
    return conv.to(x.device) if same else None
