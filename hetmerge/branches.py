"""How a network passes a unit it does not have: a residual branch of zero, or identity layers."""

from __future__ import annotations

from dataclasses import dataclass

from torch.fx import Node

from hetmerge.closing import PASS, Closing, Ends
from hetmerge.layers import NORMS, op_name, tensor_names
from hetmerge.network import Network
from hetmerge.outline import Unit
from hetmerge.tracing.expr import Leaf

_IDEMPOTENT = {"relu", "relu6", "hardtanh"} | PASS
_SCALES = {"mul", "div"}
_RESHAPES = {"view", "reshape", "_unsafe_view", "flatten"}
_LINEAR = {
    "getitem",
    "mul",
    "div",
    "add",
    "view",
    "reshape",
    "permute",
    "transpose",
    "slice",
    "pad",
}
_LINEAR |= {*NORMS, *PASS, "type_as", "constant_pad_nd"}


@dataclass(frozen=True)
class Passage:
    """What a parent without this unit puts in its place.

    Attributes:
        residual: the unit adds a branch to its input; an absent branch is zero.
        layers: node names of the layers that produce the branch (residual), or of every layer of
            the unit, each replaced by the identity (plain).
        carriers: nodes whose features, for the absent parent, are those it carries past the unit.
        scales: (tensor, offset) of learned tensors that stand for its layers, of which
            `tensor + offset` is what the branch is multiplied by: scales behind a norm, where what
            a layer's weights are multiplied by is lost, and the last matrices of experts.
        exact: the replacement computes the identity; false where a plain unit's activation is not
            idempotent, a norm or a number stands in the stream, or nothing is known to make a
            branch zero.
    """

    residual: bool
    layers: tuple[str, ...]
    carriers: tuple[str, ...]
    exact: bool
    scales: tuple[tuple[str, float], ...] = ()


def passage(network: Network, unit: Unit) -> Passage:
    """How a parent without this unit passes it."""
    inside = network.nodes.inside(unit.paths)
    nodes = network.nodes.nodes
    names = tensor_names(network.graph.program)
    stream, branches = _stream([nodes[n] for n in inside], entry_of(inside, nodes, unit))
    layers = {layer.node: layer for layer in network.layers if layer.node in set(inside)}
    closing = Closing(layers, inside, names, network.graph.tensors)
    if unit.output in stream and branches:
        carriers = tuple(n for n in inside if n in stream)
        learned = {n for n, tensor in names.items() if tensor in network.graph.tensors}
        exact = not any(_changes(nodes[n], learned) for n in carriers)
        return _residual([closing.of(branch) for branch in branches], carriers, exact)
    if _added_to(nodes[unit.output], entry_of(inside, nodes, unit)):
        return _residual([closing.of(nodes[unit.output])], (), True)
    exact = all(op_name(nodes[n]) in _IDEMPOTENT | _LINEAR or n in layers for n in inside)
    values = network.graph.values
    whole = (x.tail for x in layers.values() if isinstance(values[x.tail][x.feature_dim], Leaf))
    carriers = (*whole, unit.output)
    return Passage(False, tuple(layers), carriers, exact)


def _residual(branches: list[Ends | None], carriers: tuple[str, ...], exact: bool) -> Passage:
    closed = [ends for ends in branches if ends is not None]
    total = Ends()
    for ends in closed:
        total |= ends
    exact = exact and len(closed) == len(branches)
    return Passage(True, tuple(sorted(total.layers)), carriers, exact, tuple(sorted(total.tensors)))


def _added_to(output: Node, entry: str) -> bool:
    """The unit is a whole branch: the code around it adds its output to its input."""
    users = list(output.users)
    while len(users) == 1 and op_name(users[0]) in PASS:
        users = list(users[0].users)
    return bool(users) and all(
        op_name(user) == "add" and entry in {a.name for a in user.all_input_nodes} for user in users
    )


def entry_of(inside: list[str], nodes: dict[str, Node], unit: Unit) -> str:
    """The value of the unit's output shape that it reads from outside; the latest if several."""
    known = {name: i for i, name in enumerate(nodes)}
    outside = {
        a.name
        for n in inside
        for a in nodes[n].all_input_nodes
        if a.name in known and a.name not in set(inside)
        and tuple(getattr(a.meta.get("val"), "shape", ())) == unit.shape
    }  # fmt: skip
    return max(outside, key=known.__getitem__, default="")


def _stream(inside: list[Node], entry: str) -> tuple[set[str], list[Node]]:
    """Nodes that hold the running stream, and the operands that are added to it."""
    stream, branches = {entry}, []
    for node in inside:
        operands = [a for a in node.args if isinstance(a, Node) and a.op == "call_function"]
        carried = [a for a in operands if a.name in stream]
        if op_name(node) == "add" and len(operands) == 2 and len(carried) == 1:
            branches.append(next(a for a in operands if a.name not in stream))
            stream.add(node.name)
        elif len(carried) == len(operands) == 1 and _carries(node, carried[0]):
            stream.add(node.name)
    return stream, branches


def _carries(node: Node, operand: Node) -> bool:
    """The stream goes on behind this operation; behind a norm only where nothing passes by it."""
    if op_name(node) == "layer_norm":
        return op_name(operand) == "add" and len(operand.users) == 1
    if op_name(node) in _RESHAPES:  # [batch, length, d] and [batch * length, d] are one stream
        after, before = (n.meta.get("val") for n in (node, operand))
        return getattr(after, "shape", [0])[-1:] == getattr(before, "shape", [1])[-1:]
    if op_name(node) in _SCALES:
        return [op_name(user) for user in node.users] == ["add"]
    return op_name(node) in _IDEMPOTENT


def _changes(node: Node, learned: set[str]) -> bool:
    """The stream is another one behind this node, whatever is added to it; not where a learned
    scale can be one instead."""
    scale = any(a.name in learned for a in node.all_input_nodes)
    return op_name(node) == "layer_norm" or (op_name(node) in _SCALES and not scale)
