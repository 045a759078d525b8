"""Norms that divide features by their root mean square, and the learned scales behind them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from torch.fx import Node

from hetmerge.layers import Layer, op_name, tensor_names
from hetmerge.tracing.graph import SpaceGraph

PASS = {"to", "_to_copy", "type_as", "alias", "clone", "contiguous", "detach", "dropout"}
CHECK = "_assert_tensor_metadata"


@dataclass(frozen=True)
class Norm:
    """One norm over the last dimension.

    Attributes:
        node: what it gives.
        source: what it takes.
        mean: it divides by the root of the mean square; else by that of the sum.
        carriers: (tensor, offset) of what multiplies what it gives by `tensor + offset`: its scale,
            or the layers behind it, where they carry the scale. Empty if something else reads it.
    """

    node: str
    source: str
    mean: bool
    carriers: tuple[tuple[str, float], ...]


@dataclass(frozen=True)
class Division:
    """A node that gives what `source` is, divided by a root of its squares.

    Attributes:
        source: the node that is normalised.
        inside: the nodes that only compute the divisor.
        mean: the divisor is the root of the mean square, not of the sum.
    """

    source: Node
    inside: tuple[Node, ...]
    mean: bool


def find_norms(
    graph: SpaceGraph, layers: Sequence[Layer], folded: Mapping[str, Sequence[Layer]]
) -> tuple[Norm, ...]:
    """Every norm of a network.

    Args:
        folded: node of a scale -> the layers that carry it.
    """
    names = tensor_names(graph.program)
    tied = {*graph.aliases, *graph.aliases.values()}
    found = []
    for node in graph.program.graph.nodes:
        if division := divided(node):
            carriers = tuple(_carriers(node, names, layers, folded))
            known = () if any(tensor in tied for tensor, _ in carriers) else carriers
            found.append(Norm(node.name, division.source.name, division.mean, known))
    return tuple(found)


def _carriers(
    node: Node,
    names: Mapping[str, str],
    layers: Sequence[Layer],
    folded: Mapping[str, Sequence[Layer]],
) -> Iterator[tuple[str, float]]:
    """What multiplies the value of a norm: all of its readers, or nothing."""
    if node.name in folded:
        yield from ((layer.weight, 0.0) for layer in folded[node.name])
    elif scales := list(scales_at(node, names)):
        yield from scales
    elif own := readers(node, layers):
        if not any(layer.shared for layer in own):
            yield from ((layer.weight, 0.0) for layer in own)
    else:
        users = [user for user in node.users if op_name(user) != CHECK]
        if len(users) == 1 and (op_name(users[0]) in PASS or any(scales_at(users[0], names))):
            yield from _carriers(users[0], names, layers, folded)


def divided(node: Node) -> Division | None:
    """How a node divides something by a root of its own squares; None if it does not."""
    op = op_name(node)
    if node.op != "call_function" or op not in ("mul", "div", "rms_norm"):
        return None
    if op == "rms_norm":
        over_one = len(node.args[1]) == 1  # type: ignore[arg-type]
        return Division(node.all_input_nodes[0], (), mean=True) if over_one else None
    for value, factor in (node.args[:2], node.args[1::-1]):
        way = list(_to_square(factor)) if isinstance(factor, Node) else []
        if isinstance(value, Node) and way and origin(way[-1]) is origin(value):
            mean = any(op_name(n) == "mean" for n in way)
            return Division(value, tuple(way[:-1]), mean)
    return None


def scales_at(node: Node, names: Mapping[str, str]) -> Iterator[tuple[str, float]]:
    """(tensor, offset) of the learned vector that a node multiplies its last dimension by."""
    if node.op != "call_function" or op_name(node) not in ("mul", "rms_norm"):
        return
    for operand in node.all_input_nodes:
        found, offset = origin(operand), 0.0
        if op_name(found) == "add" and 1 in found.args:
            found, offset = origin(found.all_input_nodes[0]), 1.0
        if found.op != "placeholder" or found.name not in names:
            continue
        alone = sum(op_name(user) != CHECK for user in found.users) == 1
        if alone and found.meta["val"].shape == node.meta["val"].shape[-1:]:
            yield names[found.name], offset


def readers(node: Node, layers: Sequence[Layer]) -> list[Layer]:
    """The layers that read a node; none if anything else does."""
    found: list[Layer] = []
    for user in node.users:
        if op_name(user) == CHECK:
            continue
        mine = [x for x in layers if x.node == user.name and x.source == node.name]
        if not mine and op_name(user) in PASS:
            mine = readers(user, layers)
        if not mine:
            return []
        found += mine
    return found


def origin(node: Node) -> Node:
    """The node behind operations that change no value."""
    while node.op == "call_function" and op_name(node) in PASS:
        node = node.all_input_nodes[0]
    return node


def _to_square(node: Node) -> Iterator[Node]:
    """The nodes from a norm's factor back to what is squared in it; nothing if it is no norm."""
    way = []
    while node.op == "call_function":
        way.append(node)
        if len(node.all_input_nodes) != 1:
            return
        op, args = op_name(node), node.args
        whole = op == "mul" and args[0] is args[1]
        node = node.all_input_nodes[0]
        if op == "square" or (op == "pow" and args[1] == 2) or whole or op == "linalg_vector_norm":
            if any(_over_last(n) for n in way):
                yield from (*way, node)
            return


def _over_last(node: Node) -> bool:
    """A reduction over the last dimension alone."""
    op = op_name(node)
    if op not in ("mean", "sum", "linalg_vector_norm"):
        return False
    dims = node.args[2 if op == "linalg_vector_norm" else 1]
    rank = node.all_input_nodes[0].meta["val"].dim()
    along = dims if isinstance(dims, (list, tuple)) else [dims]
    return [int(d) % rank for d in along] == [rank - 1]  # type: ignore[arg-type]
