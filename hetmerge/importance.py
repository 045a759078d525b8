"""How much errors in the features of a space matter: the weights of a selection."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from hetmerge.batches import Call, call_for, samples
from hetmerge.execution import flat_inputs, sources_of
from hetmerge.features import View, take
from hetmerge.network import Network
from hetmerge.ops.selection import Gram
from hetmerge.tracing.expr import Concat, Expr, Product, located, size

SAMPLES = 500  # inputs whose gradients are taken
BLOCK = 8192  # rows of a weight that are looked at together


class ByWeights(Sequence[Tensor | Gram]):
    """``sum W'W`` [size, size] over everything else, of every tensor that reads a space.

    Computed whenever it is looked at, from weights that may be on disk; where they have fewer rows
    than the space has features, these rows.
    """

    def __init__(self, network: Network, space: int) -> None:
        self.network = network
        self.places = [
            (name, dim, path)
            for name, exprs in network.graph.tensors.items()
            for dim, expr in enumerate(exprs)
            if (name, dim) in network.graph.consumed
            for path, leaf in located(expr)
            if leaf.space == space
        ]

    def __len__(self) -> int:
        return len(self.places)

    @property
    def rows(self) -> int:
        """Of all W together; known without them."""
        found = 0
        for name, dim, path in self.places:
            exprs = self.network.graph.tensors[name]
            others = [size(expr) for d, expr in enumerate(exprs) if d != dim]
            found += math.prod(others) * _repeats(exprs[dim], path)
        return found

    def __getitem__(self, index: Any) -> Any:
        name, dim, path = self.places[index]
        exprs, state = self.network.graph.tensors[name], self.network.state
        if dim == 0:
            return _gram(iter([_rows(state[name], exprs[dim], dim, path)]))
        blocks = torch.arange(size(exprs[0])).split(BLOCK)
        return _gram(_rows(state.rows(name, block), exprs[dim], dim, path) for block in blocks)


def _repeats(expr: Expr, path: tuple[int, ...]) -> int:
    """How often the space at `path` stands along a dimension."""
    if not path:
        return 1
    assert isinstance(expr, (Product, Concat))
    inside = _repeats(expr.parts[path[0]], path[1:])
    if isinstance(expr, Concat):
        return inside
    return inside * math.prod(size(p) for k, p in enumerate(expr.parts) if k != path[0])


def _gram(blocks: Iterator[Tensor]) -> Tensor | Gram:
    """R'R of the blocks of R [., size], which need not exist at once."""
    few: list[Tensor] = []
    for rows in blocks:
        few.append(rows)
        if sum(map(len, few)) >= rows.shape[1]:
            found = sum((x.T @ x for x in few), torch.zeros((), dtype=rows.dtype))
            for more in blocks:
                found = found + more.T @ more
            return found
    return Gram(torch.cat(few))


def fisher(
    network: Network, calls: Sequence[Call], seed: int, views: Sequence[View]
) -> dict[View, Tensor]:
    """View -> ``sum g g'`` [size, size] over inputs and positions, where a gradient reaches it.

    g is the gradient of a random projection of the centred outputs with respect to the features
    there: a sample of the Fisher information, without labels.
    """
    found: dict[View, Tensor] = {}
    generator = torch.Generator().manual_seed(seed)
    wanted = {view.node for view in views}
    seen = 0
    for call in calls:
        gradients = _gradients(network, call, wanted, generator)
        for view in views:
            if view.node in gradients:
                expr = network.graph.values[view.node][view.dim]
                rows = _rows(gradients[view.node], expr, view.dim, view.path)
                found[view] = found.get(view, torch.zeros(())) + rows.T @ rows
        seen += samples(call)
        if seen >= SAMPLES:
            break
    return found


def _rows(tensor: Tensor, expr: Expr, dim: int, path: tuple[int, ...]) -> Tensor:
    """[rest, size] float64: a tensor with the features at `path` of dimension `dim` last."""
    taken = take(tensor, expr, dim, path)
    if not path and dim == 1:
        taken = taken.movedim(1, -1)
    return taken.reshape(-1, taken.shape[-1]).double()


def _gradients(
    network: Network, call: Call, wanted: set[str], generator: torch.Generator
) -> Mapping[str, Tensor]:
    """Node -> gradient of a random projection of the centred outputs."""
    call = call_for(call, network.member)
    program = network.program_for(call)
    given = sources_of(program, flat_inputs(*call), network.state)
    values: dict[str, Any] = {}
    taps: dict[str, Tensor] = {}
    with torch.enable_grad():
        for node in program.graph.nodes:
            if node.op == "output":
                break
            if node.op != "call_function":
                values[node.name] = given(node)
                continue
            given_to: Any = torch.fx.map_arg((node.args, node.kwargs), lambda n: values[n.name])
            args, kwargs = given_to
            value = node.target(*args, **kwargs)
            if node.name in wanted and isinstance(value, Tensor) and value.is_floating_point():
                value = value if value.requires_grad else value.detach().requires_grad_(True)
                value.retain_grad()
                taps[node.name] = value
            values[node.name] = value
        outputs = [values[name] for name in program.graph_signature.user_outputs if name in values]
        loss = torch.zeros((), dtype=torch.float64)
        for output in outputs:
            if isinstance(output, Tensor) and output.requires_grad:
                centred = output - output.mean(-1, keepdim=True)
                noise = torch.randn(centred.shape, generator=generator).to(centred)
                loss = loss + (centred * noise).sum().double().cpu()
        if loss.requires_grad:
            torch.autograd.backward([loss])
    return {name: value.grad for name, value in taps.items() if value.grad is not None}
