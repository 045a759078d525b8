"""Linear layers of an exported graph: what refit solves for, and where their outputs end."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch.export import ExportedProgram
from torch.fx import Node

CONVOLUTIONS = {"conv1d": 1, "conv2d": 2, "conv3d": 3}
NORMS = ("batch_norm", "_native_batch_norm_legit_no_training")
_PASS = {"dropout", "feature_dropout", "clone", "contiguous", "alias", "detach"}


@dataclass(frozen=True)
class Layer:
    """One convolution or linear map with weights of its own.

    Attributes:
        node, source: graph nodes of its output (before any bias of a folded norm) and of its input.
        weight, bias: parameter names; `bias` is the one that acts as bias once norms are folded.
        norm: prefix of the BatchNorm folded into it ("" if none).
        tail: node where its output is complete (after the folded norm).
        spatial: spatial dimensions of a convolution; 0 for a linear map.
        transposed: the weight is [in, out] (`addmm`, `matmul`) and not [out, in].
        shared: something else reads the weight too, so it cannot be solved for here.
    """

    node: str
    source: str
    weight: str
    bias: str | None
    own_bias: str | None
    norm: str
    tail: str
    spatial: int
    transposed: bool = False
    stride: tuple[int, ...] = ()
    padding: tuple[int, ...] = ()
    dilation: tuple[int, ...] = ()
    groups: int = 1
    shared: bool = False

    @property
    def feature_dim(self) -> int:
        """Dimension of its output that holds the features."""
        return 1 if self.spatial else -1


@dataclass(frozen=True)
class Group:
    """Layers whose outputs meet in one value, solved together.

    `target` is the node that holds the value the layers must reproduce; `skip` the other operand of
    a residual addition (None where there is none).
    """

    layers: tuple[Layer, ...]
    target: str
    skip: str | None


def op_name(node: Node) -> str:
    """Operator name without namespace and overload: `conv2d`, `add`, `getitem`."""
    packet = getattr(node.target, "overloadpacket", None)
    return str(packet).split(".")[-1] if packet else getattr(node.target, "__name__", "")


def tensor_names(program: ExportedProgram) -> dict[str, str]:
    """Placeholder name -> parameter or buffer name."""
    signature = program.graph_signature
    return {**signature.inputs_to_parameters, **signature.inputs_to_buffers}


def find_layers(program: ExportedProgram) -> tuple[Layer, ...]:
    """Every convolution and linear map whose weight is a parameter."""
    names = tensor_names(program)
    found = (_layer(node, names) for node in program.graph.nodes if node.op == "call_function")
    return tuple(layer for layer in found if layer)


def _layer(node: Node, names: dict[str, str]) -> Layer | None:
    op, args = op_name(node), list[Any](node.args)
    transposed = op in ("addmm", "matmul", "mm")
    if op == "addmm":
        args = [args[1], args[2], args[0]]
    elif op not in CONVOLUTIONS and op != "linear" and not transposed:
        return None
    source, weight = args[0], args[1]
    bias = args[2] if len(args) > 2 else node.kwargs.get("bias")
    if not isinstance(source, Node) or not isinstance(weight, Node):
        return None
    if weight.name not in names or source.name in names:
        return None
    if transposed and (weight.meta["val"].dim() != 2 or source.meta["val"].dim() < 2):
        return None
    own = names.get(bias.name) if isinstance(bias, Node) else None
    if isinstance(bias, Node) and own is None:
        return None
    norm, tail, norm_bias = _tail(node, names)
    geometry = _geometry(op, args, node) if op in CONVOLUTIONS else {}
    return Layer(
        node=node.name,
        source=source.name,
        weight=names[weight.name],
        bias=norm_bias or own,
        own_bias=own,
        norm=norm,
        tail=tail.name,
        spatial=CONVOLUTIONS.get(op, 0),
        transposed=transposed,
        shared=len(weight.users) > 1,
        **geometry,
    )


def _geometry(op: str, args: list[Any], node: Node) -> dict[str, Any]:
    rank = CONVOLUTIONS[op]
    defaults = [1, 0, 1, 1]
    keys = ["stride", "padding", "dilation", "groups"]
    given = [
        args[i + 3] if len(args) > i + 3 else node.kwargs.get(k, d)
        for i, (k, d) in enumerate(zip(keys, defaults, strict=True))
    ]
    stride, dilation = _each(given[0], rank), _each(given[2], rank)
    if isinstance(given[1], str):
        kernel = args[1].meta["val"].shape[2:]
        same = given[1] == "same"
        padding = tuple(
            d * (k - 1) // 2 if same else 0 for d, k in zip(dilation, kernel, strict=True)
        )
    else:
        padding = _each(given[1], rank)
    return {"stride": stride, "padding": padding, "dilation": dilation, "groups": given[3]}


def _each(value: Any, rank: int) -> tuple[int, ...]:
    items = tuple(value) if isinstance(value, (list, tuple)) else (value,)
    return tuple(items * rank if len(items) == 1 else items)


def _tail(node: Node, names: dict[str, str]) -> tuple[str, Node, str | None]:
    """Follow a lone BatchNorm: (its prefix, the node where the value is complete, its bias)."""
    user = _only_user(node)
    if user is None or op_name(user) not in NORMS or user.args[0] is not node:
        return "", node, None
    weight, bias, mean = user.args[1], user.args[2], user.args[3]
    if not all(isinstance(a, Node) and a.name in names for a in (weight, bias, mean)):
        return "", node, None
    assert isinstance(bias, Node)
    prefix = names[bias.name].rpartition(".")[0]
    if op_name(user) == "batch_norm":
        return prefix, user, names[bias.name]
    items = [u for u in user.users if u.target is operator.getitem and u.args[1] == 0]
    return (prefix, items[0], names[bias.name]) if items else ("", node, None)


def _only_user(node: Node) -> Node | None:
    return next(iter(node.users)) if len(node.users) == 1 else None


def left_out(
    program: ExportedProgram, groups: Sequence[Group], within: frozenset[str] | None = None
) -> dict[str, str]:
    """Weights (two or more dimensions) that no group solves for -> why not.

    Args:
        within: nodes; only weights that one of them reads count. None: all of them.
    """
    names = tensor_names(program)
    solved = {layer.weight for group in groups for layer in group.layers}
    parameters = set(program.graph_signature.inputs_to_parameters)
    found: dict[str, str] = {}
    for node in program.graph.nodes:
        name = names.get(node.name)
        if node.name not in parameters or node.meta["val"].dim() < 2 or name in solved:
            continue
        if within is not None and not any(user.name in within for user in node.users):
            continue
        readers = sorted({op_name(user) for user in node.users})
        if len(node.users) > 1:
            found[str(name)] = f"read in {len(node.users)} places ({', '.join(readers)})"
        elif readers:
            found[str(name)] = f"read by {readers[0]}, which is no linear map of one input"
    return found


def find_groups(program: ExportedProgram, layers: tuple[Layer, ...]) -> tuple[Group, ...]:
    """Group the layers that feed one residual addition; order them as they can be solved."""
    nodes = {n.name: n for n in program.graph.nodes}
    order = {name: i for i, name in enumerate(nodes)}
    ends = {_end(nodes[layer.tail]).name: layer for layer in layers if not layer.shared}
    groups: list[Group] = []
    seen: set[str] = set()
    for end, layer in ends.items():
        if layer.node in seen:
            continue
        group = _residual(nodes[end], layer, ends)
        seen.update(member.node for member in group.layers)
        groups.append(group)
    return tuple(sorted(groups, key=lambda g: max(order[m.node] for m in g.layers)))


def _end(node: Node) -> Node:
    while (user := _only_user(node)) is not None and op_name(user) in _PASS:
        node = user
    return node


def _residual(end: Node, layer: Layer, ends: dict[str, Layer]) -> Group:
    alone = Group((layer,), layer.tail, None)
    user = _only_user(end)
    if user is None or op_name(user) != "add" or user.kwargs.get("alpha", 1) != 1:
        return alone
    operands = [a for a in user.args if isinstance(a, Node)]
    if len(operands) != 2 or operands[0] is operands[1]:
        return alone
    other = operands[1] if operands[0] is end else operands[0]
    if other.op != "call_function" or other.meta["val"].shape != end.meta["val"].shape:
        return alone
    partner = ends.get(other.name)
    if partner is not None and len(other.users) == 1:
        return Group((layer, partner), user.name, None)
    return Group((layer,), user.name, other.name)
