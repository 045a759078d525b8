"""Export a model to a functional ATen program."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import fx, nn
from torch.export import ExportedProgram
from torch.utils import _pytree as pytree

from hetmerge.errors import TraceError
from hetmerge.tracing.conventions import inference
from hetmerge.tracing.functional import make_functional, mutable
from hetmerge.tracing.linear import make_linear
from hetmerge.tracing.modes import Numbers, Runs, without_lines
from hetmerge.tracing.operators import operator_name
from hetmerge.tracing.portable import ANYWHERE
from hetmerge.tracing.repeating import export_repeated


def example(args: Any, kwargs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Normalise the ways to give a model's inputs."""
    if isinstance(args, Mapping):
        if kwargs:
            raise TraceError("inputs given as a mapping and as keyword arguments; give one")
        return (), dict(args)
    if isinstance(args, torch.Tensor):
        args = (args,)
    if not isinstance(args, (tuple, list)):
        raise TraceError(
            f"inputs must be a tensor, a tuple, a list or a dict, got {type(args).__name__}"
        )
    if kwargs is not None and not isinstance(kwargs, Mapping):
        raise TraceError(f"keyword arguments must be a dict, got {type(kwargs).__name__}")
    return tuple(args), dict(kwargs or {})


def export(
    model: nn.Module,
    args: Any = (),
    kwargs: dict[str, Any] | None = None,
    *,
    free_sizes: bool = False,
) -> ExportedProgram:
    """Export a model to a functional ATen program.

    Evaluation mode, no gradients, no cache; the model is left as it was. Parameters stay real, so
    the program can be run unless the model is on the meta device.

    Args:
        model: any module that `torch.export` accepts.
        args: example inputs: a tensor, a tuple, a list, or a dict of keyword inputs.
        kwargs: example keyword inputs.
        free_sizes: sizes of inputs above 1 stay open where the model's code allows.

    Raises:
        TraceError: the model cannot be exported for these inputs.
    """
    if not isinstance(model, nn.Module):
        raise TraceError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    args, kwargs = example(args, kwargs)
    meta = any(p.device.type == "meta" for p in model.parameters())
    device: Any = torch.device("meta") if meta else contextlib.nullcontext()
    numbers: Any = Numbers() if meta else contextlib.nullcontext()
    if meta:
        args, kwargs = pytree.tree_map(_to_meta, (args, kwargs))
    try:
        with inference(model), device, numbers, Runs(), without_lines(), warnings.catch_warnings():
            # recurrent layers re-list their weights while they are traced; torch restores the list
            warnings.filterwarnings(
                "ignore", message=r"The tensor attributes? self\..*_flat_weights"
            )
            # torch's own use of a pytree check that torch deprecates
            warnings.filterwarnings("ignore", message=r".*LeafSpec.*", category=FutureWarning)
            sizes = _free_sizes(model, args, kwargs) if free_sizes else None

            def whole(model: nn.Module) -> ExportedProgram:
                found = torch.export.export(model, args, kwargs, strict=False, dynamic_shapes=sizes)
                make_functional(found)
                return found.run_decompositions({}) if _mutable(found) else found

            exported = export_repeated(model, (args, kwargs), whole) if meta and not sizes else None
            exported = exported or whole(model)
    except Exception as error:
        raise TraceError(_failure(model, args, kwargs, error)) from error
    left = _mutable(exported)
    if left:
        raise TraceError(f"{type(model).__name__}: in-place {left[0]} could not be made functional")
    make_linear(exported)
    exported.graph.eliminate_dead_code()  # such as a pooler whose output is not returned
    exported.graph_module.recompile()
    return exported


def place_on(program: ExportedProgram, device: torch.device) -> None:
    """Make a program that was traced on the meta device create its values on `device`.

    Operators that only some devices or types of numbers have become ones that all have.

    Raises:
        TraceError: it holds a constant whose value the meta device has not kept.
    """
    buffers = set(program.graph_signature.inputs_to_buffers.values())
    for name, constant in program.constants.items():
        lost = isinstance(constant, torch.Tensor) and constant.device.type == "meta"
        if lost and name not in buffers:
            raise TraceError(
                f"constant {name!r} is made in the model's own code, so its value is not known "
                "without weights; load the model into memory and give it as a module"
            )
    for node in program.graph.nodes:
        args, kwargs = pytree.tree_map(
            lambda leaf: device if leaf == torch.device("meta") else leaf, (node.args, node.kwargs)
        )
        node.args, node.kwargs = args, kwargs
        node.target = ANYWHERE.get(node.target, node.target)


def _free_sizes(model: nn.Module, args: Any, kwargs: Any) -> Any:
    sizes = torch.export.ShapesCollection()
    for leaf in pytree.tree_leaves((args, kwargs)):
        if isinstance(leaf, torch.Tensor):
            open_ones = [dim for dim, size in enumerate(leaf.shape) if size > 1]
            sizes[leaf] = dict.fromkeys(open_ones, torch.export.Dim.AUTO)
    return sizes.dynamic_shapes(model, args, kwargs)


def _to_meta(leaf: Any) -> Any:
    return leaf.to("meta") if isinstance(leaf, torch.Tensor) else leaf


def _failure(model: nn.Module, args: Any, kwargs: Any, error: Exception) -> str:
    shapes = [_shape(leaf) for leaf in args]
    shapes += [f"{name}={_shape(leaf)}" for name, leaf in kwargs.items()]
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    cause = f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
    return f"{type(model).__name__} cannot be exported for inputs ({', '.join(shapes)}): {cause}"


def _shape(leaf: Any) -> str:
    return str(list(leaf.shape)) if isinstance(leaf, torch.Tensor) else type(leaf).__name__


def _mutable(exported: ExportedProgram) -> list[str]:
    """In-place operators, nested graphs included."""
    graphs = [m for m in exported.graph_module.modules() if isinstance(m, fx.GraphModule)]
    return [operator_name(node) for graph in graphs for node in graph.graph.nodes if mutable(node)]
