"""Products with the transpose of a weight become the linear maps that they are."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx
from torch.export import ExportedProgram

from hetmerge.tracing.operators import named_arguments, operator_name

_PRODUCTS = {"matmul", "mm"}
_TRANSPOSES = {"t", "numpy_T", "mT"}


def make_linear(exported: ExportedProgram) -> None:
    """Replace `x @ weight.T`, of a parameter with two dimensions, by `linear(x, weight)`."""
    parameters = set(exported.graph_signature.inputs_to_parameters)
    for node in exported.graph.nodes:
        if node.op != "call_function" or operator_name(node) not in _PRODUCTS:
            continue
        x, factor = named_arguments(node, node.args, node.kwargs).values()
        weight = _transposed(factor)
        if weight is not None and weight.name in parameters:
            node.target = torch.ops.aten.linear.default
            node.args, node.kwargs = (x, weight), {}


def _transposed(node: Any) -> fx.Node | None:
    """What this is the transpose of; None if it is no transposed matrix."""
    if not isinstance(node, fx.Node) or node.op != "call_function":
        return None
    args = named_arguments(node, node.args, node.kwargs)
    of = args.get("self")
    if not isinstance(of, fx.Node) or of.meta["val"].dim() != 2:
        return None
    name = operator_name(node)
    turned = name in _TRANSPOSES
    if name == "transpose":
        turned = {args["dim0"] % 2, args["dim1"] % 2} == {0, 1}
    if name == "permute":
        turned = [i % 2 for i in args["dims"]] == [1, 0]
    return of if turned else None
