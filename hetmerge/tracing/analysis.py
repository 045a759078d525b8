"""Walk an exported graph and apply a rule to every operator."""

from __future__ import annotations

import operator
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx
from torch.utils import _pytree as pytree

from hetmerge.errors import TraceError
from hetmerge.tracing.axes import Axis, Dim, Mismatch, atoms, pin, unite
from hetmerge.tracing.call import Call, Facts, module_of, tensor_leaves
from hetmerge.tracing.constants import FILLS, fold
from hetmerge.tracing.families import follow
from hetmerge.tracing.operators import named_arguments, operator_name
from hetmerge.tracing.program import Program
from hetmerge.tracing.rules import RULES
from hetmerge.tracing.values import Const, Family, Val, Value, varying

# only the shape and type of these operators' tensor argument matter
SHAPE_ONLY = FILLS | {"rand_like", "randn_like", "randint_like", "sym_size", "size"}


@dataclass
class Analysis:
    """Axes of every tensor of a program, still as mutable union-find nodes."""

    program: Program
    facts: Facts = field(default_factory=Facts)
    parameters: dict[str, Val] = field(default_factory=dict)
    values: dict[str, Val] = field(default_factory=dict)  # top-level nodes
    seen: list[Val] = field(default_factory=list)  # every value, nested graphs included


def analyse(program: Program) -> Analysis:
    """Find the axes of every tensor; raises `TraceError` for shapes that depend on data."""
    result = Analysis(program)
    environment: dict[fx.Node, Any] = {}
    graph = program.exported.graph_module
    for node in graph.graph.nodes:
        if node.op == "placeholder":
            environment[node] = _placeholder(result, node)
    _tie(result)
    _walk(result, graph, environment)
    _pin_outputs(result, environment)
    _pin_unread(result)
    return result


def _placeholder(result: Analysis, node: fx.Node) -> Any:
    value = node.meta.get("val")
    if not isinstance(value, torch.Tensor):
        return value
    shape = tuple(int(n) for n in value.shape)
    name = result.program.learned.get(node.name)
    if name is None:
        label, data = result.program.label(node.name)
        return varying(shape, label, data=data)
    dims: tuple[Dim, ...] = tuple((Axis(n),) if n > 1 else () for n in shape)
    first = result.program.ties.get(name, name)
    origin = tuple(frozenset({(first, i)}) for i in range(len(shape)))
    result.parameters[name] = Val(dims, origin)
    return result.parameters[name]


def _tie(result: Analysis) -> None:
    """Tied parameters share every axis; partly overlapping ones cannot be permuted."""
    known = result.parameters
    for other, name in result.program.ties.items():
        if other in known and name in known:
            for a, b in zip(known[other].dims, known[name].dims, strict=True):
                unite(a, b)
    for name, reason in result.program.overlaps.items():
        for dim in known[name].dims if name in known else ():
            pin(dim, reason)


def _walk(result: Analysis, module: fx.GraphModule, environment: dict[fx.Node, Any]) -> Any:
    """Evaluate every node; returns the output of the graph."""
    top = module is result.program.exported.graph_module
    for node in module.graph.nodes:
        if node.op == "placeholder":
            continue
        if node.op == "output":
            return pytree.tree_map(
                lambda x: environment[x] if isinstance(x, fx.Node) else x, node.args[0]
            )
        value = _evaluate(result, module, node, environment)
        environment[node] = value
        _remember(result, node, value, top)
    raise TraceError("a graph without an output")


def _remember(result: Analysis, node: fx.Node, value: Any, top: bool) -> None:
    for leaf in tensor_leaves(value):
        result.seen += leaf.members if isinstance(leaf, Family) else []
        if isinstance(leaf, Val):
            result.seen.append(leaf)
    if isinstance(value, Val) and top:
        result.values[node.name] = value


def _evaluate(
    result: Analysis, module: fx.GraphModule, node: fx.Node, environment: dict[fx.Node, Any]
) -> Any:
    if node.op == "get_attr":
        return _attribute(module, str(node.target))
    args: Any = fx.map_arg(node.args, environment.__getitem__)
    kwargs: Any = fx.map_arg(node.kwargs, environment.__getitem__)
    if node.target is operator.getitem:
        return args[0][args[1]]
    graphs = [i for i, arg in enumerate(args) if isinstance(arg, fx.GraphModule)]
    if len(graphs) == 1 and operator_name(node) in WRAPPERS:
        inner: Any = args[graphs[0]]
        names = [n for n in inner.graph.nodes if n.op == "placeholder"]
        inputs = dict(zip(names, args[len(args) - len(names) :], strict=True))
        return _walk(result, inner, inputs)
    return _apply(result, node, args, kwargs)


# higher-order operators that call one graph with their last arguments
WRAPPERS = {"wrap_with_set_grad_enabled", "wrap_with_autocast", "wrap", "invoke_subgraph"}


def _attribute(module: fx.GraphModule, target: str) -> Any:
    found: Any = module
    for part in target.split("."):
        found = getattr(found, part)
    return varying(found.shape, "a constant") if isinstance(found, torch.Tensor) else found


def _apply(result: Analysis, node: fx.Node, args: Any, kwargs: Any) -> Any:
    _require_static(node)
    name = operator_name(node)
    call = Call(
        node,
        name,
        named_arguments(node, args, kwargs),
        named_arguments(node, node.args, node.kwargs),
        result.facts,
    )
    inputs = list(tensor_leaves([list(args), dict(kwargs)]))
    if name in SHAPE_ONLY:
        inputs = [leaf for leaf in inputs if isinstance(leaf, Const)]
    if not any(isinstance(leaf, (Val, Family)) for leaf in inputs):
        return _constant(call, inputs)
    first = next(iter(call.args.values()))
    if isinstance(first, Family):
        followed = follow(call, first)
        if followed is not None:
            return followed
    return _by_rule(call)


def _by_rule(call: Call) -> Any:
    rule = RULES.get(call.name)
    if call.result is None:
        return None  # assertions and the like
    if rule is None:
        call.facts.unknown[call.name] += 1
        return call.opaque(f"no rule for {call.name}")
    try:
        found = rule(call)
        _check_shapes(call, found)
        return found
    except Exception as error:  # whatever goes wrong in a rule, pinning is sound
        call.facts.unknown[call.name] += 1
        return call.opaque(f"the rule for {call.name} does not cover this use: {error}")


def _check_shapes(call: Call, found: Any) -> None:
    expected = [x for x in pytree.tree_leaves(call.result) if isinstance(x, torch.Tensor)]
    for value, like in zip(tensor_leaves(found), expected, strict=False):
        if value.shape != tuple(like.shape):
            raise Mismatch(f"it gave {value.shape} instead of {tuple(like.shape)}")


def _constant(call: Call, inputs: list[Value]) -> Any:
    constants = [leaf for leaf in inputs if isinstance(leaf, Const)]

    def convert(leaf: Any) -> Any:
        return fold(call, constants, leaf) if isinstance(leaf, torch.Tensor) else leaf

    return pytree.tree_map(convert, call.result)


def _require_static(node: fx.Node) -> None:
    for leaf in pytree.tree_leaves(node.meta.get("val")):
        if isinstance(leaf, torch.Tensor) and not all(isinstance(n, int) for n in leaf.shape):
            where = module_of(node) or "the model"
            raise TraceError(
                f"{where}: the shape of {operator_name(node)}'s result depends on the data; "
                "only static shapes can be traced"
            )


def _pin_outputs(result: Analysis, environment: dict[fx.Node, Any]) -> None:
    by_name = {node.name: value for node, value in environment.items()}
    for node, label in result.program.results.items():
        for leaf in tensor_leaves(by_name.get(node)):
            for dims in _member_dims(leaf):
                for i, dim in enumerate(dims):
                    pin(dim, f"{label}, axis {i}")


def _pin_unread(result: Analysis) -> None:
    """Parts that this call cuts off, such as later positions: other calls may read them."""
    places = [*(value.dims for value in result.seen), *result.facts.indexed]
    read = {axis for dims in places for dim in dims for axis in atoms(dim)}
    for value in result.parameters.values():
        for axis in {axis for dim in value.dims for axis in atoms(dim)} - read:
            pin((axis,), "not read for these inputs")


def _member_dims(leaf: Value) -> Iterator[tuple[Dim, ...]]:
    if isinstance(leaf, Val):
        yield leaf.dims
    elif isinstance(leaf, Family):
        for member in leaf.members:
            yield member.dims
