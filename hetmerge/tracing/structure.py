"""Which orderings may differ per index of another axis (heads, groups, experts)?

A permutation of an inner axis may depend on the index of an outer one if every tensor, and the
joint index space of every operator, says unambiguously which outer index an inner one belongs to,
and no operator combines entries along the outer axis while the inner one is still there.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence

from hetmerge.tracing.analysis import Analysis
from hetmerge.tracing.axes import Axis, Dim, atoms, factors, find

Groups = Callable[[Axis], list[Axis]]


def dependencies(analysis: Analysis, used: Iterable[tuple[Dim, ...]]) -> dict[Axis, set[Axis]]:
    """For every atom, the atoms that its permutation may depend on (cycles not yet broken)."""
    groups = _routed(analysis)
    found: dict[Axis, set[Axis]] = {}
    places = [*used, *(value.dims for value in analysis.seen), *analysis.facts.indexed]
    for dims in places:
        for atom, owners in _owners(dims, groups):
            found[atom] = found[atom] & owners if atom in found else owners
    for mix in analysis.facts.mixes:
        combined = [mix.dims[i] for i in mix.along]
        mixed = {atom for dim in combined for atom in atoms(dim)}
        mixed |= {expert for dim in combined for axis in factors(dim) for expert in groups(axis)}
        for i, dim in enumerate(mix.dims):
            if i not in mix.along:
                for atom in atoms(dim):
                    found[atom] = found.get(atom, set()) - mixed
    return found


def _routed(analysis: Analysis) -> Groups:
    """Expert axes whose index every entry of a token axis carries."""
    routings: Counter[Axis] = Counter()
    for dim in analysis.facts.routings.values():
        routings.update(set(atoms(dim)))

    def groups(axis: Axis) -> list[Axis]:
        experts = {find(expert) for expert, _ in find(axis).groups}
        # two groupings of the same experts sort the tokens differently
        return [expert for expert in experts if routings[expert] == 1]

    return groups


def _owners(dims: Sequence[Dim], groups: Groups) -> Iterator[tuple[Axis, set[Axis]]]:
    """Every atom with the atoms whose index it is unambiguously attached to."""
    tops = [_top(dim, groups) for dim in dims]
    total: Counter[Axis] = Counter()
    for top in tops:
        total.update(top)
    for dim, top in zip(dims, tops, strict=True):
        others = {axis for axis, count in (total - top).items() if count == 1}
        yield from _nested(dim, Counter(), others)


def _top(dim: Dim, groups: Groups) -> Counter[Axis]:
    parts = factors(dim)
    found = Counter(axis for axis in parts if axis.body is None)
    found.update(expert for axis in parts for expert in groups(axis))
    return found


def _nested(
    dim: Iterable[Axis], path: Counter[Axis], others: set[Axis]
) -> Iterator[tuple[Axis, set[Axis]]]:
    parts = factors(dim)
    own = path + Counter(axis for axis in parts if axis.body is None)
    for axis in parts:
        if axis.body is not None:
            for part in axis.body.parts:
                yield from _nested((part,), own, others)
            continue
        # a factor of the same product decides before one of another dimension
        owners = {other for other, count in own.items() if count == 1}
        owners |= {other for other in others if other not in own}
        yield axis, owners - {axis}


def acyclic(wanted: dict[int, set[int]]) -> dict[int, tuple[int, ...]]:
    """Keep dependencies on earlier (outer) items, then later ones that close no cycle."""
    kept: dict[int, set[int]] = {i: {j for j in on if j < i} for i, on in wanted.items()}
    for i in sorted(wanted):
        for j in sorted(wanted[i] - kept[i]):
            if not _reaches(kept, j, i):
                kept[i].add(j)
    return {i: tuple(sorted(on)) for i, on in kept.items()}


def _reaches(graph: dict[int, set[int]], start: int, goal: int) -> bool:
    waiting, seen = [start], {start}
    while waiting:
        node = waiting.pop()
        if node == goal:
            return True
        waiting += graph.get(node, set()) - seen
        seen |= graph.get(node, set())
    return False
