"""Operators that write into their argument become ones that make a new value."""

from __future__ import annotations

import operator
from collections import defaultdict
from typing import Any

import torch
from torch import Tensor, fx
from torch._subclasses.fake_tensor import FakeTensor
from torch.export import ExportedProgram
from torch.utils import _pytree as pytree

from hetmerge.tracing.operators import operator_name

_OPEN = (torch.SymInt, torch.SymFloat, torch.SymBool)


def mutable(node: fx.Node) -> bool:
    """It writes into one of its arguments."""
    schema = getattr(node.target, "_schema", None)
    return node.op == "call_function" and bool(getattr(schema, "is_mutable", False))


def make_functional(exported: ExportedProgram) -> None:
    """Replace `x.add_(y)` by `x + y` where nobody can tell the difference.

    Nobody can if no input, and nothing that is read behind the operator, shares memory with `x`,
    and if the sum has the type, sizes and strides of `x`. Who shares memory is found by running the
    program once without data. What is not replaced stays as it is; torch's own way, which knows
    every case (:meth:`ExportedProgram.run_decompositions`), traces the program a second time.
    """
    nodes = list(exported.graph.nodes)
    if not any(mutable(node) for node in nodes):
        return
    if not all(_plain(node) for node in nodes):
        return
    made = _Run(nodes)
    place = {node: i for i, node in enumerate(nodes)}
    for node in nodes:
        if node.target is torch.ops.aten.lift_fresh_copy.default:  # a tensor in a model's own code
            node.target = torch.ops.aten.clone.default
        twin = made.twins.get(node)
        if twin is None:
            continue
        before = [other for other in made.sharing(node.args[0]) if place[other] < place[node]]
        given = any(other.op == "placeholder" for other in before)
        read = any(place[user] > place[node] for other in before for user in other.users)
        if not given and not read:
            node.target = twin


def _plain(node: fx.Node) -> bool:
    """What it makes has sizes that are known, and it has no graph of its own."""
    if node.op not in ("placeholder", "output"):
        known = isinstance(node.target, torch._ops.OpOverload) or node.target is operator.getitem
        if node.op != "call_function" or not known:
            return False
    leaves = pytree.tree_leaves(node.meta.get("val"))
    sizes = [size for v in leaves if isinstance(v, Tensor) for size in v.shape]
    return not any(isinstance(v, _OPEN) for v in (*leaves, *sizes))


class _Run:
    """A program's values without data.

    Attributes:
        twins: operators that write into their first argument alone -> the same without writing, if
            what it makes is laid out as the argument is.
    """

    def __init__(self, nodes: list[fx.Node]):
        self.values: dict[fx.Node, Any] = {}
        self.owners: defaultdict[int, set[fx.Node]] = defaultdict(set)
        self.twins: dict[fx.Node, Any] = {}
        leaves = pytree.tree_leaves([node.meta.get("val") for node in nodes])
        mode = next(leaf.fake_mode for leaf in leaves if isinstance(leaf, FakeTensor))
        with mode, torch.no_grad():
            for node in nodes:
                if node.op == "placeholder":
                    self.values[node] = node.meta["val"]
                elif node.op == "call_function":
                    self.values[node] = self._make(node)
                for memory in _memory(self.values.get(node)):
                    self.owners[memory].add(node)

    def _make(self, node: fx.Node) -> Any:
        args, kwargs = pytree.tree_map_only(
            fx.Node, self.values.__getitem__, (node.args, node.kwargs)
        )
        target: Any = node.target
        twin = _twin(node) if mutable(node) else None
        if twin is not None:
            made = twin(*args, **kwargs)
            if isinstance(made, Tensor) and _layout(made) == _layout(args[0]):
                self.twins[node] = twin
        return target(*args, **kwargs)

    def sharing(self, node: fx.Node) -> set[fx.Node]:
        """Every node with memory of this one, itself too."""
        return {other for memory in _memory(self.values[node]) for other in self.owners[memory]}


def _twin(node: fx.Node) -> Any:
    """The operator of the same name without the underscore; None where there is none."""
    target: Any = node.target
    name = operator_name(node)
    first, *others = target._schema.arguments
    writes = first.alias_info is not None and first.alias_info.is_write
    if not writes or any(o.alias_info and o.alias_info.is_write for o in others):
        return None
    packet = getattr(torch.ops.aten, name.removesuffix("_"), None)
    return getattr(packet, target._overloadname, None) if name.endswith("_") else None


def _layout(value: Tensor) -> tuple[Any, ...]:
    return value.dtype, value.shape, value.stride()


def _memory(value: Any) -> set[int]:
    """What a value's tensors are stored in."""
    return {
        leaf.untyped_storage()._cdata
        for leaf in pytree.tree_leaves(value)
        if isinstance(leaf, Tensor)
    }
