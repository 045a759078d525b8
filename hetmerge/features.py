"""Where a space's features can be seen, and how to take them out of a node's value."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.fx import Node

from hetmerge.layers import op_name
from hetmerge.network import Network
from hetmerge.tracing.expr import Concat, Expr, Leaf, Product, size


@dataclass(frozen=True)
class View:
    """A space seen in one dimension of a node's value, at `path` inside that dimension."""

    node: str
    dim: int
    path: tuple[int, ...]


def views_of(network: Network) -> dict[int, list[View]]:
    """Space -> the views of it in what layers read (what a merge must preserve).

    A space that no layer reads is seen wherever it is a whole dimension of numbers, but not inside
    experts: a router sends other tokens to them in every network.
    """
    seen: dict[int, dict[View, None]] = {}
    values = network.graph.values
    for layer in network.layers:
        if layer.source in values:
            _add(seen, layer.source, layer.feature_dim, values[layer.source])
    read = set(seen)
    for node, exprs in values.items():
        if node in network.graph.routed or not _of_numbers(network.nodes.nodes.get(node)):
            continue
        for dim, expr in enumerate(exprs):
            if isinstance(expr, Leaf) and expr.space >= 0 and expr.space not in read:
                seen.setdefault(expr.space, {})[View(node, dim, ())] = None
    return {space: list(views) for space, views in seen.items()}


def _of_numbers(node: Node | None) -> bool:
    """Its value holds features: no indices, nothing true or false, no infinities of a mask."""
    value = node.meta.get("val") if node else None
    masked = node is not None and op_name(node) == "masked_fill"
    return not masked and (not isinstance(value, Tensor) or value.is_floating_point())


def _add(seen: dict[int, dict[View, None]], node: str, dim: int, exprs: tuple[Expr, ...]) -> None:
    for space, path in _paths(exprs[dim], ()):
        seen.setdefault(space, {})[View(node, dim % len(exprs), path)] = None


def _paths(expr: Expr, path: tuple[int, ...]) -> Iterator[tuple[int, tuple[int, ...]]]:
    if isinstance(expr, Leaf):
        if expr.space >= 0:
            yield expr.space, path
        return
    for i, part in enumerate(expr.parts):
        yield from _paths(part, (*path, i))


def take(value: Tensor, expr: Expr, dim: int, path: tuple[int, ...]) -> Tensor:
    """The features at `path` of dimension `dim`, as [positions, size] or [batch, size, ...]."""
    if not path:
        return value if dim == 1 else value.movedim(dim, -1).reshape(-1, value.shape[dim])
    index = _indices(expr, path).to(value.device)
    taken = value.movedim(dim, -1)[..., index]
    return taken.reshape(-1, taken.shape[-1])


def take_units(value: Tensor, expr: Expr, dim: int, path: tuple[int, ...]) -> Tensor:
    """The features at `path` in all units of the space around them, [positions, units * size]."""
    index = _indices(expr, path).flatten()
    if torch.equal(index, torch.arange(value.shape[dim])):
        return take(value, expr, dim, ())
    taken = value.movedim(dim, -1)[..., index.to(value.device)]
    return taken.reshape(-1, len(index))


def _indices(expr: Expr, path: tuple[int, ...]) -> Tensor:
    """Positions along a dimension of the features at `path`: [rest, size]."""
    if not path:
        return torch.arange(size(expr))[None]
    assert isinstance(expr, (Product, Concat))
    inner = _indices(expr.parts[path[0]], path[1:])
    sizes = [size(part) for part in expr.parts]
    if isinstance(expr, Concat):
        return inner + sum(sizes[: path[0]])
    before = int(torch.tensor(sizes[: path[0]]).prod())
    after = int(torch.tensor(sizes[path[0] + 1 :]).prod())
    outer = torch.arange(before)[:, None, None, None] * sizes[path[0]]
    grid = (outer + inner[None, :, None, :]) * after + torch.arange(after)[None, None, :, None]
    return grid.reshape(-1, inner.shape[-1])
