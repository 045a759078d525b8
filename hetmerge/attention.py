"""What attention multiplies its scores by, and the tensors that can make up for another factor.

Scores are divided by the root of a head's size. Where parents differ in it, their queries are
scaled so that every parent's scores stay what they were.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from hetmerge.layers import Layer, op_name, tensor_names
from hetmerge.norms import scales_at
from hetmerge.tracing.graph import SpaceGraph

_FUSED = ("scaled_dot_product_attention", "_scaled_dot_product_flash_attention_for_cpu")
_PRODUCTS = ("matmul", "bmm")
_MOVES = {"view", "reshape", "_unsafe_view", "flatten", "unflatten", "transpose", "permute", "t"}
_MOVES |= {"slice", "select", "split", "split_with_sizes", "chunk", "getitem", "unbind", "index"}
_MOVES |= {"unsqueeze", "squeeze", "expand", "cat", "stack", "pad", "constant_pad_nd", "neg"}
_MOVES |= {"contiguous", "clone", "alias", "detach", "dropout", "to", "_to_copy", "type_as"}
_LINEAR = _MOVES | {"add", "sub", "mul", "div"}
_BETWEEN = {"add", "masked_fill", "where", "maximum", "tanh", "to", "_to_copy", "contiguous"}


@dataclass(frozen=True)
class Queries:
    """A tensor that makes queries.

    Attributes:
        tensor: its name.
        dim: the dimension of its features.
        offset: `tensor + offset` is what multiplies.
        used: bool [features], which of them become queries.
    """

    tensor: str
    dim: int
    offset: float
    used: Tensor


@dataclass(frozen=True)
class Attention:
    """One product of queries and keys.

    Attributes:
        node, query: nodes of the product and of its queries, [..., features].
        size: features of a query.
        scale: what the product is multiplied by, numbers on the queries' way included.
        made: the tensors that make the queries; empty where no scale of theirs would do.
    """

    node: str
    query: str
    size: int
    scale: float
    made: tuple[Queries, ...]


def find_attentions(graph: SpaceGraph, layers: Sequence[Layer]) -> dict[str, Attention]:
    """Every attention of a network by its node."""
    search, found = _Search(graph, layers), {}
    for node in graph.program.graph.nodes:
        if node.op == "call_function" and (score := search.score(node)):
            query, scale = score
            ends = search.ends(query)
            before = set(ends.values()) or {1.0}
            made = [q for end in ends for q in search.made(end, query)] if len(before) == 1 else []
            size = int(query.meta["val"].shape[-1])
            found[node.name] = Attention(
                node.name, query.name, size, scale * before.pop(), tuple(made)
            )
    return found


class _Search:
    def __init__(self, graph: SpaceGraph, layers: Sequence[Layer]) -> None:
        self.values, self.nodes = graph.values, list(graph.program.graph.nodes)
        self.names = tensor_names(graph.program)
        self.layers = {layer.tail: layer for layer in layers}

    def score(self, node: Node) -> tuple[Node, float] | None:
        """The queries of a product with keys, and its scale; None if the node is something else."""
        op, args = op_name(node), list[Any](node.args)
        if op in _FUSED:
            scale = node.kwargs.get("scale")
            size = args[0].meta["val"].shape[-1]
            return args[0], float(size**-0.5 if scale is None else scale)  # type: ignore[arg-type]
        if op in _PRODUCTS and all(a.name in self.values for a in args[:2]):
            scale = _to_softmax(node)
            return None if scale is None else (args[0], scale)
        return None

    def ends(self, query: Node) -> dict[Node, float]:
        """Where queries come from, back through moves and sums -> the numbers on the way."""
        found: dict[Node, float] = {}
        stack = [(query, 1.0)]
        while stack:
            node, factor = stack.pop()
            op = op_name(node) if node.op == "call_function" else ""
            if node.name in self.layers or op == "layer_norm" or any(scales_at(node, self.names)):
                found[node] = factor
            elif op in _LINEAR:
                factor *= _number(node)
                read = node.all_input_nodes[: 1 if op == "type_as" else None]
                stack += [(n, factor) for n in read if self._learned(n)]
            else:
                return {}
        return found

    def _learned(self, node: Node) -> bool:
        """It depends on parameters; the pieces of a split have no value of their own."""
        several = isinstance(node.meta.get("val"), (tuple, list))
        return node.name in self.values or several

    def made(self, end: Node, query: Node) -> Iterator[Queries]:
        """The tensors of a layer, a norm or a learned scale whose features become queries."""
        layer = self.layers.get(end.name)
        used = self._used(end, query)
        if layer is not None:
            yield Queries(layer.weight, 1 if layer.transposed else 0, 0.0, used)
            if layer.bias:
                yield Queries(layer.bias, 0, 0.0, used)
        elif scales := dict(scales_at(end, self.names)):
            yield from (Queries(name, 0, offset, used) for name, offset in scales.items())
        else:
            learned = [self.names[n.name] for n in end.all_input_nodes if n.name in self.names]
            yield from (Queries(name, 0, 0.0, used) for name in learned)

    def _used(self, end: Node, query: Node) -> Tensor:
        """[features] of `end` that the queries depend on, by a gradient through random values."""
        random = torch.Generator().manual_seed(0)
        start = _like(end, random).requires_grad_(True)
        known = {end.name: start}

        def value(node: Node) -> Any:
            return known[node.name] if node.name in known else _like(node, random)

        order = [n.name for n in self.nodes]
        with torch.enable_grad():
            for node in self.nodes[order.index(end.name) + 1 : order.index(query.name) + 1]:
                if any(n.name in known for n in node.all_input_nodes) and self._inside(node):
                    args, kwargs = torch.fx.map_arg((node.args, node.kwargs), value)
                    known[node.name] = node.target(*args, **kwargs)
            found = known[query.name]
            weights = torch.rand(found.shape, generator=random, dtype=found.dtype).to(found)
            (slope,) = torch.autograd.grad((found * weights).sum(), start)
        return (slope.reshape(-1, slope.shape[-1]).abs().sum(0) > 0).cpu()

    def _inside(self, node: Node) -> bool:
        return node.op == "call_function" and op_name(node) in _LINEAR


def _like(node: Node, random: torch.Generator) -> Tensor:
    """A random value of a node's shape, where it computes; ones where it holds no floats."""
    meta = node.meta["val"]
    device = "cpu" if meta.device.type == "meta" else meta.device
    if not meta.is_floating_point():
        return torch.ones(meta.shape, dtype=meta.dtype, device=device)
    return (torch.rand(meta.shape, generator=random, dtype=meta.dtype) + 0.5).to(device)


def _number(node: Node) -> float:
    """What a node multiplies its input by, where that is a number."""
    op, args = op_name(node), node.args
    if op not in ("mul", "div") or len(args) < 2:
        return 1.0
    known = [float(a) for a in args[:2] if isinstance(a, (int, float))]
    if not known:
        return 1.0
    return known[0] if op == "mul" else 1 / known[0]


def _to_softmax(node: Node) -> float | None:
    """The numbers between a product and its softmax; None where none follows."""
    scale = 1.0
    while True:
        users = [u for u in node.users if op_name(u) != "_assert_tensor_metadata"]
        if len(users) != 1:
            return None
        node = users[0]
        op = op_name(node) if node.op == "call_function" else ""
        if op in ("softmax", "_softmax", "_safe_softmax"):
            return scale
        if op in ("mul", "div"):
            scale *= _number(node)
        elif op not in _BETWEEN | _MOVES:
            return None


@dataclass(frozen=True)
class Factor:
    """What a parent's tensor is multiplied by: `values` [features] along `dim`, behind `offset`."""

    dim: int
    offset: float
    values: Tensor

    def of(self, tensor: Tensor, rows: Tensor | None = None) -> Tensor:
        """The tensor, or those rows of it, scaled."""
        values = self.values if rows is None or self.dim else self.values[rows]
        shape = [1] * tensor.dim()
        shape[self.dim] = -1
        values = values.to(tensor).reshape(shape)
        return (tensor + self.offset) * values - self.offset
