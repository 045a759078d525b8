"""One application of an operator, as its rule sees it, and the facts that rules record."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx
from torch.utils import _pytree as pytree

from hetmerge.tracing.axes import Axis, Dim, Mismatch, concat, extent, pin, unite
from hetmerge.tracing.values import Const, Family, Origin, Reference, Val, joined


@dataclass(frozen=True)
class Mix:
    """An operator combines entries along ``along`` of a tensor with these dimensions."""

    node: str
    dims: tuple[Dim, ...]
    along: frozenset[int]
    weightless: bool  # no weights: two nets cannot be kept apart along a mixed free axis


@dataclass
class Facts:
    """What the walk over a graph learns besides the axes themselves."""

    indexed: list[tuple[Dim, ...]] = field(default_factory=list)  # joint index space of each op
    mixes: list[Mix] = field(default_factory=list)
    unknown: Counter[str] = field(default_factory=Counter)
    roles: dict[str, set[int]] = field(default_factory=dict)  # tensor -> consumed dims, first use
    routings: dict[fx.Node, Dim] = field(default_factory=dict)  # grouping -> expert axis


def module_of(node: fx.Node) -> str:
    """Dotted name of the module that owns a node; empty at top level."""
    stack = node.meta.get("nn_module_stack") or {}
    return str(list(stack.values())[-1][0]) if stack else ""


class Call:
    """Arguments by schema name, the output's shape, and the ways a rule may act on axes."""

    def __init__(
        self, node: fx.Node, name: str, args: dict[str, Any], nodes: dict[str, Any], facts: Facts
    ) -> None:
        self.node = node
        self.name = name
        self.args = args
        self.nodes = nodes  # the same arguments as graph nodes
        self.facts = facts
        self.result: Any = node.meta.get("val")
        module = module_of(node)
        self.here = f"{node.name} in {module}" if module else node.name

    # -- arguments

    def val(self, name: str) -> Val:
        """An argument as a parameter-dependent tensor; constants get fresh axes."""
        return self.as_val(self.args[name])

    def as_val(self, value: Any) -> Val:
        if isinstance(value, Val):
            return value
        if isinstance(value, Family):
            return stacked(value.members, value.axis)
        if isinstance(value, Const):
            dims = tuple(self._constant_dim(value, i) for i in range(value.rank))
            return Val(dims, None if value.data else (frozenset(),) * value.rank)
        raise Mismatch(f"expected a tensor, got {type(value).__name__}")

    def _constant_dim(self, value: Const, position: int) -> Dim:
        size = value.shape[position]
        if position in value.varies:
            return self.pinned(size, f"{value.label} varies along it")
        return free(size)

    def tensors(self) -> list[Val]:
        """Every tensor argument, in order."""
        return [self.as_val(leaf) for leaf in tensor_leaves(list(self.args.values()))]

    def get(self, name: str, default: Any = None) -> Any:
        return self.args.get(name, default)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the first result."""
        first = self.result[0] if isinstance(self.result, (tuple, list)) else self.result
        if not isinstance(first, torch.Tensor):
            raise Mismatch("the result is not a tensor")
        return tuple(int(n) for n in first.shape)

    # -- actions

    def pinned(self, size: int, reason: str) -> Dim:
        """A fresh axis that may not be permuted."""
        return () if size == 1 else (Axis(size, f"{reason} ({self.here})"),)

    def pin(self, dim: Iterable[Axis], reason: str) -> None:
        pin(dim, f"{reason} ({self.here})")

    def fix(self, dims: Sequence[Dim], along: Iterable[int], reason: str) -> None:
        """Order matters along these dimensions: no permutation, and nothing may vary with them."""
        positions = [i % len(dims) for i in along]
        for i in positions:
            self.pin(dims[i], reason)
        self.mix(dims, positions, weightless=False)

    def mix(self, dims: Sequence[Dim], along: Iterable[int], *, weightless: bool = True) -> None:
        """Entries along these dimensions are combined with each other."""
        positions = frozenset(i % len(dims) for i in along)
        if positions:
            self.facts.mixes.append(Mix(self.node.name, tuple(dims), positions, weightless))

    def joint(self, *dims: Dim) -> None:
        """The operator runs over all these dimensions at once (before it sums any of them)."""
        self.facts.indexed.append(tuple(dims))

    def consume(self, weight: Any, dim: int) -> None:
        """A dimension of a weight is contracted with an activation."""
        if isinstance(weight, Val) and weight.origin is not None:
            self._use(weight.origin[dim % weight.rank])

    def _use(self, references: frozenset[Reference]) -> None:
        touched: dict[str, set[int]] = {}
        for tensor, dim in references:
            touched.setdefault(tensor, set()).add(dim)
        for tensor, found in touched.items():
            self.facts.roles.setdefault(tensor, found)

    def looked_up(self, weight: Any) -> None:
        """A weight is used as a table of rows: none of its dimensions is contracted."""
        if isinstance(weight, Val) and weight.origin is not None:
            for tensor, _ in joined(weight.origin):
                self.facts.roles.setdefault(tensor, set())

    def opaque(self, why: str) -> Any:
        """The sound answer when nothing is known: pin what comes in and what goes out."""
        for leaf in tensor_leaves(list(self.args.values())):
            if not isinstance(leaf, Const):
                value = self.as_val(leaf)
                self.fix(value.dims, range(value.rank), why)

        def fresh(leaf: Any) -> Any:
            if not isinstance(leaf, torch.Tensor):
                return leaf
            return Val(tuple(self.pinned(int(n), why) for n in leaf.shape))

        return pytree.tree_map(fresh, self.result)


def free(size: int) -> Dim:
    """A fresh axis about which nothing is known."""
    return () if size == 1 else (Axis(size),)


def tensor_leaves(tree: Any) -> Iterator[Val | Const | Family]:
    """Tensors in a nest of arguments."""
    kinds = (Val, Const, Family)
    for leaf in pytree.tree_leaves(tree, is_leaf=lambda x: isinstance(x, kinds)):
        if isinstance(leaf, kinds):
            yield leaf


def stacked(members: Sequence[Val], axis: int) -> Val:
    """Stack values along a new dimension; they must agree on all others."""
    first = members[0]
    for other in members[1:]:
        for a, b in zip(first.dims, other.dims, strict=True):
            if extent(a) > 1 or extent(b) > 1:
                unite(a, b)
    length: Dim = concat([()] * len(members)) if len(members) > 1 else ()
    dims = (*first.dims[:axis], length, *first.dims[axis:])
    origin: Origin | None = None
    if all(member.origin is not None for member in members):
        per_dim = zip(*(member.origin or () for member in members), strict=True)
        combined = [joined(group) for group in per_dim]
        origin = (*combined[:axis], frozenset(), *combined[axis:])
    return Val(dims, origin)
