"""What has to be zero so that a whole branch is: its last layers, scales or experts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from torch.fx import Node

from hetmerge.layers import NORMS, Layer, op_name
from hetmerge.norms import scales_at

PASS = {"dropout", "clone", "contiguous", "alias", "detach", "to", "_to_copy"}
# Zero where their first operand is, whatever the others are.
_FIRST = {
    *("getitem", "div", "view", "reshape", "permute", "transpose", "slice", "pad", "index", "sum"),
    *("constant_pad_nd", "unsqueeze", "squeeze", "expand", "split", "mean", "unbind", "select"),
    *("split_with_sizes", "chunk", "flatten", "unflatten", "_unsafe_view", "type_as", "roll"),
    *("flip", "narrow", "repeat", "index_select", "im2col", "col2im", "avg_pool2d", "max_pool2d"),
    *("adaptive_avg_pool2d", "upsample_nearest2d", "upsample_bilinear2d", "pixel_shuffle"),
    *("neg", *PASS, *NORMS),
}
_BENDS = {"relu", "relu6", "gelu", "silu", "tanh", "elu", "selu", "celu", "leaky_relu", "mish"}
_BENDS |= {"hardswish", "hardtanh", "square", "abs"}
# Zero where all of their operands are; of `_WRITES` these positions, without the index.
_ALL = {"add", "sub", "cat", "stack"}
_WRITES = {"index_add": (0, 3), "index_put": (0, 2), "scatter_add": (0, 3)}
# Zero where one operand is.
_ONE = {"mul", "bmm", "matmul", "mm", "_grouped_mm", "grouped_mm", "grouped_mm_fallback"}
_SHIFTED = {"layer_norm", "group_norm"}
_CONSTANT = {"add", "sub", "pad", "constant_pad_nd"}  # a number may stand in an operand's place
_ZEROS = {"zeros", "zeros_like", "new_zeros"}


@dataclass(frozen=True)
class Ends:
    """What is set to zero.

    Attributes:
        layers: node names of layers, each with its bias.
        tensors: (tensor, offset) of others, which get the value -offset.
        way: (activations, products) between them and the branch's end: behind an activation, a
            share of them is no share of the branch.
    """

    layers: frozenset[str] = frozenset()
    tensors: frozenset[tuple[str, float]] = frozenset()
    way: tuple[int, int] = (0, 0)

    def __or__(self, other: Ends) -> Ends:
        way = max(self.way, other.way)
        return Ends(self.layers | other.layers, self.tensors | other.tensors, way)

    def behind(self, activations: int, products: int) -> Ends:
        """The same, further from the end."""
        return replace(self, way=(self.way[0] + activations, self.way[1] + products))


class Closing:
    """Finds the ends of values inside one unit.

    Args:
        layers: its layers by node name.
        inside: names of its nodes.
        names: placeholder -> tensor.
        parameters: tensors that a merge makes, each read under one name.
    """

    def __init__(
        self,
        layers: Mapping[str, Layer],
        inside: Iterable[str],
        names: Mapping[str, str],
        parameters: Iterable[str],
    ) -> None:
        self._layers, self._inside, self._names = layers, set(inside), names
        self._parameters = set(parameters)
        self._found: dict[str, Ends | None] = {}

    def of(self, node: Node) -> Ends | None:
        """What makes the value of a node zero; None where nothing is known to."""
        if node.name not in self._found:
            self._found[node.name] = self._ends(node)
        return self._found[node.name]

    def _ends(self, node: Node) -> Ends | None:
        if node.name in self._layers:
            return Ends(layers=frozenset({node.name}))
        if node.op == "placeholder":
            name = self._names.get(node.name)
            own = name in self._parameters and len(node.users) == 1
            return Ends(tensors=frozenset({(str(name), 0.0)})) if own else None
        if node.name not in self._inside:
            return None
        if learned := frozenset(scales_at(node, self._names)):
            return Ends(tensors=learned)
        op = op_name(node)
        if op in _SHIFTED:
            return self._learned(node)
        if op in _ZEROS:
            return Ends()
        if op in _CONSTANT and any(isinstance(a, (int, float)) and a != 0 for a in node.args[1:]):
            return None
        if op in _FIRST:
            return self.of(node.all_input_nodes[0])
        if op in _BENDS:
            found = self.of(node.all_input_nodes[0])
            return found.behind(1, 0) if found else None
        if op in _WRITES:
            return self._all(node.args[i] for i in _WRITES[op])
        if op in _ALL:
            return self._all(node.all_input_nodes)
        return self._one(node.all_input_nodes) if op in _ONE else None

    def _learned(self, node: Node) -> Ends | None:
        """Scale and shift of a norm that subtracts the mean; without them it keeps zeros."""
        operands = [a for a in node.args[2:4] if isinstance(a, Node)]
        names = {str(self._names.get(a.name)) for a in operands}
        if not operands:
            return self.of(node.all_input_nodes[0])
        own = names <= self._parameters and all(len(a.users) == 1 for a in operands)
        return Ends(tensors=frozenset((name, 0.0) for name in names)) if own else None

    def _all(self, operands: Iterable[object]) -> Ends | None:
        total = Ends()
        for operand in operands:
            found = self.of(operand) if isinstance(operand, Node) else None
            if found is None:
                return None
            total |= found
        return total

    def _one(self, operands: Iterable[Node]) -> Ends | None:
        """One of them, so that an absent parent's weight counts once: the nearest."""
        found = [ends for ends in map(self.of, operands) if ends is not None]
        nearest = min(found, key=lambda ends: ends.way, default=None)
        return nearest.behind(0, 1) if nearest else None
