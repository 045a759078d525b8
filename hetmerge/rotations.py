"""Spaces without a preferred basis, and the learned scales that stand in the way of one.

RMSNorm without its scale and linear maps commute with rotations. So a residual stream that nothing
else touches can be rotated as a whole, and its map in a merge may be an orthogonal projection.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.fx import Node

from hetmerge.layers import CONVOLUTIONS, Layer, op_name, tensor_names
from hetmerge.norms import CHECK, PASS, divided, readers, scales_at
from hetmerge.tracing.expr import Expr, Leaf, leaves
from hetmerge.tracing.graph import SpaceGraph
from hetmerge.weights import State

_MOVES = PASS | {"view", "reshape", "unsqueeze", "squeeze", "flatten", "expand", "neg"}
_MOVES |= {"transpose", "permute", "slice", "select", "index", "cat", "stack"}
_MAPS = {"linear", "addmm", "embedding", *CONVOLUTIONS}


@dataclass(frozen=True)
class Gain:
    """A learned scale of features that nothing but linear maps reads.

    Attributes:
        tensor: its name; `tensor + offset` multiplies the features.
        offset: 1 where the code adds one to what it has learned, else 0.
        node: where the scaled features are.
        layers: the layers that read them.
    """

    tensor: str
    offset: float
    node: str
    layers: tuple[Layer, ...]


@dataclass(frozen=True)
class Rotation:
    """A space without a preferred basis.

    Attributes:
        norms: the nodes in front of the norms through which every layer reads it; empty where
            every layer reads it as it is.
    """

    norms: tuple[str, ...]


def find_gains(graph: SpaceGraph, layers: Sequence[Layer]) -> tuple[Gain, ...]:
    """Every scale that can be moved into the layers that read what it scales."""
    names = tensor_names(graph.program)
    tied = {*graph.aliases, *graph.aliases.values()}
    found = []
    for node in graph.program.graph.nodes:
        for tensor, offset in scales_at(node, names):
            behind = readers(node, layers)
            fixed = any(x.shared or x.spatial or x.weight in tied for x in behind)
            if behind and not fixed and tensor not in tied:
                found.append(Gain(tensor, offset, node.name, tuple(behind)))
    return tuple(found)


def fold_gains(gains: Sequence[Gain], state: State) -> None:
    """Move every scale into the layers behind it; what is left multiplies by one."""
    for gain in gains:
        scale = state[gain.tensor] + gain.offset
        for layer in gain.layers:
            state.scale(layer.weight, 0 if layer.transposed else 1, scale)
        state.put(gain.tensor, torch.full_like(scale, 1 - gain.offset))


def find_rotations(
    graph: SpaceGraph, layers: Sequence[Layer], gains: Sequence[Gain], state: Mapping[str, Tensor]
) -> dict[int, Rotation]:
    """The free spaces that every operation allows to be rotated as a whole.

    Args:
        state: a gain is no obstacle where all its entries are equal, as after `fold_gains`.
    """
    flat = {g.node for g in gains if bool((state[g.tensor] == state[g.tensor][0]).all())}
    search = _Search(graph, layers, flat)
    nested = {k for space in graph.spaces for k in space.structure}
    whole = [
        space.index
        for space in graph.spaces
        if space.free and not space.structure and all(not place.path for place in space.where)
    ]
    found = {k: search.rotation(k) for k in whole if k not in nested}
    return {k: rotation for k, rotation in found.items() if rotation is not None}


class _Search:
    """Looks at the operations of one graph; `flat` are nodes that multiply by one number."""

    def __init__(self, graph: SpaceGraph, layers: Sequence[Layer], flat: set[str]) -> None:
        self.graph, self.flat = graph, flat
        self.layers = {layer.node: layer for layer in layers}
        self.nodes = {n.name: n for n in graph.program.graph.nodes}
        self.names = tensor_names(graph.program)
        self.norms: dict[str, Node] = {}  # node -> what it is the normalised value of
        self.inside: set[str] = set()  # what norms and scales are computed by
        for node in self.nodes.values():
            if (division := divided(node)) and self._bare(node):
                self.norms[node.name] = division.source
                self.inside |= {n.name for n in division.inside}
            if node.name in flat:
                self.inside |= {n.name for a in node.all_input_nodes for n in _to_parameter(a)}

    def rotation(self, space: int) -> Rotation | None:
        """None where an operation depends on the basis, or only some readers have a norm."""
        if not all(self._allows(n, space) for n in self.nodes.values() if n.op == "call_function"):
            return None
        read = [self.nodes[x.source] for x in self.layers.values()]
        sources = dict.fromkeys(n for n in read if self._at(n, space) is not None)
        norms = [self._norm_before(node) for node in sources]
        known = dict.fromkeys(node.name for node in norms if node is not None)
        if not sources or (known and None in norms):
            return None
        return Rotation(tuple(known))

    def _bare(self, node: Node) -> bool:
        """It multiplies by no scale, or by one number."""
        fused = op_name(node) == "rms_norm" and len(node.all_input_nodes) > 1
        return not fused or node.name in self.flat

    def _exprs(self, node: Node) -> tuple[Expr, ...]:
        if node.op == "placeholder":
            name = self.names.get(node.name, "")
            return self.graph.tensors.get(self.graph.aliases.get(name, name), ())
        return self.graph.values.get(node.name, ())

    def _at(self, node: Node, space: int) -> int | None:
        """The dimension that is the space, -1 where it is a part or there are several; or None."""
        where = [
            dim if isinstance(expr, Leaf) else -1
            for dim, expr in enumerate(self._exprs(node))
            if any(leaf.space == space for leaf in leaves(expr))
        ]
        return None if not where else (where[0] if len(where) == 1 else -1)

    def _allows(self, node: Node, space: int) -> bool:
        inputs = [n for n in node.all_input_nodes if self._at(n, space) is not None]
        own, op = self._at(node, space), op_name(node)
        if own is None and not inputs:
            return True
        if own == -1 or any(self._at(n, space) == -1 for n in inputs if n.op != "placeholder"):
            return False
        if op in _MAPS:
            return not (op in CONVOLUTIONS and len(node.args) > 6 and node.args[6] != 1)
        if node.name in self.norms:
            return self._only_mapped(node)
        if node.name in self.flat or node.name in self.inside or op == CHECK:
            return True
        if op in ("add", "sub"):
            return len(inputs) == 2
        if op in ("mul", "div"):
            return inputs == [node.args[0]] and not isinstance(node.args[1], Node)
        return op in _MOVES and own is not None

    def _norm_before(self, node: Node) -> Node | None:
        """What is normalised to give the value of a node, behind nothing but its scale."""
        while node.name not in self.norms:
            if node.op != "call_function" or not (op_name(node) in PASS or node.name in self.flat):
                return None
            inputs = [n for n in node.all_input_nodes if n.op == "call_function"]
            inputs = [n for n in inputs if n.name not in self.inside]
            if len(inputs) != 1:
                return None
            node = inputs[0]
        return self.norms[node.name]

    def _only_mapped(self, node: Node) -> bool:
        """Nothing but linear maps reads it, perhaps behind a scale."""
        return all(
            op_name(user) == CHECK
            or user.name in self.layers
            or ((op_name(user) in PASS or user.name in self.flat) and self._only_mapped(user))
            for user in node.users
        )


def _to_parameter(node: Node) -> list[Node]:
    """The nodes from a value back to the one parameter it is computed from; none otherwise."""
    way = []
    while node.op == "call_function" and len(node.all_input_nodes) == 1:
        way.append(node)
        node = node.all_input_nodes[0]
    return way if node.op == "placeholder" else []
