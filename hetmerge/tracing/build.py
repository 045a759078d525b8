"""Turn the axes of an analysis into spaces and expressions."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.export import ExportedProgram

from hetmerge.tracing.analysis import Analysis, analyse
from hetmerge.tracing.axes import Axis, Plus, atoms, factors, find
from hetmerge.tracing.exporting import example, export
from hetmerge.tracing.expr import Concat, Expr, Leaf, Product, located
from hetmerge.tracing.graph import SpaceGraph
from hetmerge.tracing.names import names
from hetmerge.tracing.program import read
from hetmerge.tracing.spaces import Occurrence, Space
from hetmerge.tracing.structure import acyclic, dependencies
from hetmerge.tracing.values import Val


def trace(model: nn.Module, args: Any = (), kwargs: dict[str, Any] | None = None) -> SpaceGraph:
    """Find the spaces of a model from its exported graph.

    Args:
        model: any module that `torch.export` accepts, on any device; left as it was. Evaluation
            mode is traced. On the meta device the graph is found without any weights, but its
            program cannot be run.
        args: example inputs: a tensor, a tuple or list of positional inputs, or a dict of keyword
            inputs. Use a batch of at least two, because an axis of size one is not an axis here.
        kwargs: example keyword inputs.

    Raises:
        TraceError: the model cannot be exported for these inputs, or shapes depend on data.
    """
    return spaces_of(model, export(model, args, kwargs), args, kwargs)


def spaces_of(
    model: nn.Module, exported: ExportedProgram, args: Any, kwargs: dict[str, Any] | None
) -> SpaceGraph:
    """What :func:`trace` finds, of a model that has been exported for these inputs."""
    positional, keywords = example(args, kwargs)
    analysis = analyse(read(model, exported))
    return _Builder(analysis).graph(type(model).__name__, (positional, keywords))


@dataclass
class _Builder:
    analysis: Analysis

    def graph(self, model: str, inputs: tuple[tuple[Any, ...], dict[str, Any]]) -> SpaceGraph:
        program, facts = self.analysis.program, self.analysis.facts
        used, dead = self._used()
        self.order = _first_seen(used.values())
        tensors = {name: self.exprs(value) for name, value in used.items()}
        consumed = frozenset(
            (tensor, dim) for tensor, dims in facts.roles.items() if tensor in used for dim in dims
        )
        spaces = self._spaces(used, tensors, consumed)
        return SpaceGraph(
            program=program.exported,
            spaces=spaces,
            tensors=tensors,
            aliases={a: b for a, b in program.ties.items() if b in used},
            dead=dead,
            values={name: self.exprs(value) for name, value in self.analysis.values.items()},
            consumed=consumed,
            routed=frozenset(name for name, v in self.analysis.values.items() if _routed(v)),
            mixing=self._mixing(spaces),
            outputs=program.outputs,
            unknown=dict(facts.unknown),
            model=model,
            inputs=inputs,
        )

    def _used(self) -> tuple[dict[str, Val], tuple[str, ...]]:
        """Learned tensors that reach an output, under their first name; and those that do not."""
        program = self.analysis.program
        reached = {
            program.ties.get(name, name)
            for placeholder, name in program.learned.items()
            if placeholder in program.reached
        }
        parameters = self.analysis.parameters
        first = [name for name in parameters if name not in program.ties]
        is_parameter = set(program.exported.graph_signature.parameters)
        dead = tuple(name for name in first if name not in reached and name in is_parameter)
        return {name: parameters[name] for name in first if name in reached}, dead

    def exprs(self, value: Val) -> tuple[Expr, ...]:
        return tuple(self.expr(dim) for dim in value.dims)

    def expr(self, dim: Iterable[Axis]) -> Expr:
        parts = tuple(self._part(axis) for axis in factors(dim))
        return parts[0] if len(parts) == 1 else Product(parts)

    def _part(self, axis: Axis) -> Expr:
        if isinstance(axis.body, Plus):
            return Concat(tuple(self.expr((part,)) for part in axis.body.parts))
        return Leaf(self.order.get(axis, -1), axis.size)

    def _spaces(
        self,
        used: dict[str, Val],
        tensors: dict[str, tuple[Expr, ...]],
        consumed: frozenset[tuple[str, int]],
    ) -> tuple[Space, ...]:
        where: dict[int, list[Occurrence]] = {i: [] for i in self.order.values()}
        for tensor, dims in tensors.items():
            for dim, expr in enumerate(dims):
                for path, leaf in located(expr):
                    where[leaf.space].append(Occurrence(tensor, dim, path))
        depends = dependencies(self.analysis, [value.dims for value in used.values()])
        structure = acyclic(
            {
                i: {self.order[other] for other in depends.get(axis, set()) if other in self.order}
                for axis, i in self.order.items()
            }
        )
        lookups = {tensor for tensor, dims in self.analysis.facts.roles.items() if not dims}
        labels = names(where, consumed, lookups)
        return tuple(
            Space(
                index=i,
                name=labels[i],
                size=axis.size,
                free=not axis.pins,
                structure=() if axis.pins else structure[i],
                pins=tuple(axis.pins),
                where=tuple(where[i]),
            )
            for axis, i in self.order.items()
        )

    def _mixing(self, spaces: tuple[Space, ...]) -> tuple[str, ...]:
        free = {axis for axis, i in self.order.items() if spaces[i].free}
        found = {
            mix.node: None
            for mix in self.analysis.facts.mixes
            if mix.weightless
            and any(axis in free for i in mix.along for axis in atoms(mix.dims[i]))
        }
        return tuple(found)


def _routed(value: Val) -> bool:
    return any(find(axis).groups for dim in value.dims for axis in factors(dim))


def _first_seen(values: Iterable[Val]) -> dict[Axis, int]:
    """Atoms in the order of their first use."""
    found: dict[Axis, int] = {}
    counter = itertools.count()
    for value in values:
        for dim in value.dims:
            for axis in atoms(dim):
                if axis not in found:
                    found[axis] = next(counter)
    return found
