"""What a merged network costs, as a polynomial in the widths of its spaces."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import reduce

from hetmerge.batches import Call, samples
from hetmerge.network import Network
from hetmerge.tracing.expr import Concat, Expr, Leaf

Monomial = tuple[int, ...]  # spaces that are multiplied, ascending, one named twice if squared
Polynomial = dict[Monomial, int]


@dataclass(frozen=True)
class Cost:
    """A sum of products of widths.

    Attributes:
        name: what is counted, "parameters" or "flops".
        terms: spaces multiplied with one another -> how often; `()` is the constant.
        inputs: how many inputs it is the cost of; `at` gives that of one.
    """

    name: str
    terms: Polynomial
    inputs: int = 1

    def at(self, widths: Mapping[int, int]) -> float:
        """The cost where these spaces have these widths: all that occur in `terms`."""
        total = sum(n * math.prod(widths[k] for k in term) for term, n in self.terms.items())
        return total / self.inputs


def parameter_cost(skeleton: Network) -> Cost:
    """Numbers in the parameters of the merged network; tied ones count once.

    A tensor has as many as the product of the merged sizes of its dimensions.
    """
    parameters = dict(skeleton.model.named_parameters())
    traced = [exprs for name, exprs in skeleton.graph.tensors.items() if name in parameters]
    fixed = sum(parameters[name].numel() for name in skeleton.graph.dead)
    return Cost("parameters", _sum([*map(_size, traced), {(): fixed}]))


def flop_cost(skeleton: Network, call: Call) -> Cost:
    """Operations of the merged network's layers for one input of `call`.

    Two (multiply, add) per entry of a convolution's or linear map's weight and per position of its
    output. Activations, norms and products of activations (attention scores) are not counted.
    """
    counts = []
    for layer in skeleton.layers:
        out = list(skeleton.graph.values[layer.node])
        del out[layer.feature_dim]
        weight = skeleton.graph.tensors[_first_name(skeleton, layer.weight)]
        counts.append(_size([*out, *weight]))
    doubled = {term: 2 * n for term, n in _sum(counts).items()}
    return Cost("flops", doubled, samples(call))


def _first_name(network: Network, tensor: str) -> str:
    return network.graph.aliases.get(tensor, tensor)


def _size(exprs: Iterable[Expr]) -> Polynomial:
    return reduce(_product, (_polynomial(expr) for expr in exprs), {(): 1})


def _polynomial(expr: Expr) -> Polynomial:
    """Size of one dimension in the widths of its spaces (see `hetmerge.partition.merged_size`)."""
    if isinstance(expr, Leaf):
        return {(expr.space,): 1} if expr.space >= 0 else {(): expr.size}
    if isinstance(expr, Concat):
        return _sum(_polynomial(part) for part in expr.parts)
    return _size(expr.parts)


def _sum(polynomials: Iterable[Polynomial]) -> Polynomial:
    total: Polynomial = {}
    for polynomial in polynomials:
        for term, count in polynomial.items():
            total[term] = total.get(term, 0) + count
    return total


def _product(left: Polynomial, right: Polynomial) -> Polynomial:
    found: Polynomial = {}
    for a, m in left.items():
        for b, n in right.items():
            term = tuple(sorted((*a, *b)))
            found[term] = found.get(term, 0) + m * n
    return found
