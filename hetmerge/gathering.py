"""Second moments of every space, from the parents' activations on the same inputs."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor

from hetmerge.batches import Call, comparable, positions
from hetmerge.errors import InputError
from hetmerge.execution import Schedule, Walker
from hetmerge.features import View, take, take_units, views_of
from hetmerge.halfway import Halfway
from hetmerge.loudness import Squares, uneven_norms
from hetmerge.nested import nest_at
from hetmerge.network import release
from hetmerge.ops.moments import Moments
from hetmerge.progress import Progress
from hetmerge.scope import Scope
from hetmerge.setting import Setting
from hetmerge.streams import heads_inside, whole_axes, whole_rows
from hetmerge.tracing.expr import located

CHANCE_SAMPLES = 250  # inputs that tell what correlates by chance
CHANCE_FEATURES = 2048  # of a parent, that tell it

Nest = tuple[int, int]
K = TypeVar("K")


@dataclass(frozen=True)
class Gathered:
    """Moments of the spaces that have been seen everywhere, by index in the skeleton.

    Attributes:
        squares: node in front of a norm -> how loud features are there.
    """

    moments: dict[int, Moments] = field(default_factory=dict)
    nested: dict[Nest, Moments] = field(default_factory=dict)
    chance: dict[int, Moments] = field(default_factory=dict)
    axes: dict[int, Moments] = field(default_factory=dict)
    squares: dict[str, Squares] = field(default_factory=dict)


_KINDS: dict[str, type[Moments] | type[Squares]] = {
    "moments": Moments,
    "nested": Moments,
    "chance": Moments,
    "axes": Moments,
    "squares": Squares,
}


@dataclass(frozen=True)
class Visit:
    """A view of a space; of an axis that is an outer and an inner space (`nest`); of the whole axis
    of heads or groups (`kind` "axis"), or of what a norm takes ("norm", `space` is -1)."""

    view: View
    space: int
    nest: Nest | None = None
    kind: str = ""


def gather(
    setting: Setting,
    calls: Sequence[Call],
    progress: Progress,
    scope: Scope,
    halfway: Halfway | None = None,
) -> Iterator[Gathered]:
    """Moments per space, per axis that is an outer and an inner space, and by chance.

    Parents in memory run one batch after the other, and all moments come in one piece. Parents on
    disk run unit by unit over all batches, which reads every weight once and keeps the streams of
    all batches; moments come as soon as their spaces have been seen everywhere.

    Args:
        scope: what is seen.
        halfway: of parents on disk, where what was seen is kept for a run that is stopped.
    """
    visits = _in_order(setting, visits_of(setting, scope) + _norms(setting, scope.whole))
    on_disk = not setting.skeleton.in_memory
    segments = by_unit(setting, visits) if on_disk else [visits]
    runs = [_walkers(setting, call, visits) for call in calls] if on_disk else [None] * len(calls)
    gathering = _Gathering(setting, visits, scope.within)
    if halfway:
        if known := halfway.take("gathering"):
            gathering.restore(known, runs)
        halfway.keep("gathering", lambda: gathering.state(runs))
    for segment in _tracked(progress, segments[gathering.passed :], on_disk):
        seen = 0
        items = list(zip(calls, runs, strict=True))
        for call, run in items if on_disk else progress.track(items, "moments of spaces"):
            walkers = run or _walkers(setting, call, visits)
            for visit in segment:
                gathering.visit(walkers, call, visit, seen < CHANCE_SAMPLES)
                for walker, names in zip(walkers, in_repeats(setting, visit), strict=True):
                    walker.release(names)
            seen += positions(call)
        release(setting.parents)
        gathering.passed += 1
        later = {visit.space for rest in segments[gathering.passed :] for visit in rest}
        yield gathering.complete(later)
        if halfway:
            halfway.passed()


def visits_of(setting: Setting, scope: Scope) -> list[Visit]:
    """Every view that tells what meets what, in the order in which it is reached."""
    views = _views(setting, scope.alone)
    shared = {space: found for space, found in views.items() if len(setting.members(space)) > 1}
    nests = _nested_views(setting, shared)
    visits = [Visit(view, space) for space, found in views.items() for view in found]
    visits += [Visit(view, nest[0], nest) for nest, found in nests.items() for view in found]
    kept = heads_inside(setting).values()
    axes = {k: node for k, node in whole_axes(setting).items() if scope.whole or k in kept}
    visits += [Visit(View(node, -1, ()), space, kind="axis") for space, node in axes.items()]
    return _in_order(setting, visits)


def _norms(setting: Setting, whole: bool) -> list[Visit]:
    """What norms take whose loudness must be known."""
    rotations = setting.skeleton.rotations.values() if whole else ()
    nodes = [node for rotation in rotations for node in rotation.norms]
    nodes += [norm.source for norm in uneven_norms(setting)]
    return [Visit(View(node, -1, ()), -1, kind="norm") for node in dict.fromkeys(nodes)]


def _in_order(setting: Setting, visits: Sequence[Visit]) -> list[Visit]:
    order = setting.skeleton.nodes.order
    return sorted(visits, key=lambda visit: order.get(visit.view.node, -1))


def _tracked(
    progress: Progress, segments: list[list[Visit]], on_disk: bool
) -> Iterator[list[Visit]]:
    return progress.track(segments, "moments of spaces") if on_disk else iter(segments)


def _walkers(setting: Setting, call: Call, visits: Sequence[Visit]) -> list[Walker]:
    walkers = [link.parent.walk([call], link.again) for link in setting.links]
    hold_repeats(setting, walkers, visits)
    return walkers


def hold_repeats(setting: Setting, parents: Sequence[Schedule], visits: Sequence[Visit]) -> None:
    """Let units that stand at several positions run again until each visit has released its own."""
    for visit in visits if setting.repeats else ():
        for schedule, names in zip(parents, in_repeats(setting, visit), strict=True):
            schedule.hold(names)


def in_repeats(setting: Setting, visit: Visit) -> list[list[str]]:
    """Per parent, the node that a visit sees there, if its unit stands at several positions."""
    found = []
    for link in setting.links:
        node = link.node(visit.view.node) if link.again else None
        found.append([node] if node and any(node in unit for unit in link.again) else [])
    return found


def by_unit(setting: Setting, visits: Sequence[Visit]) -> list[list[Visit]]:
    """The visits of each unit of the skeleton, and of what is in front of it."""
    order = setting.skeleton.nodes.order
    ends = sorted(order[unit.output] for stage in setting.stages for unit in stage.units)
    segments: list[list[Visit]] = [[] for _ in range(len(ends) + 1)]
    for visit in visits:
        at = order.get(visit.view.node, -1)
        segments[bisect_left(ends, at)].append(visit)
    return [segment for segment in segments if segment]


class _Gathering:
    """Moments that are being gathered."""

    def __init__(self, setting: Setting, visits: Sequence[Visit], within: bool) -> None:
        self.setting, self.within = setting, within
        self.inside = {visit.nest[1] for visit in visits if visit.nest}
        self.found = Gathered()
        self.groups = _tied(setting)
        self.passed = 0  # segments that have been seen

    def state(self, runs: Sequence[Sequence[Walker] | None]) -> dict[str, Any]:
        """All that the next segment needs; `runs` are the walkers per batch."""
        found = {
            kind: {key: held.state_dict() for key, held in getattr(self.found, kind).items()}
            for kind in _KINDS
        }
        walkers = [[walker.reached() for walker in run or ()] for run in runs]
        return {"passed": self.passed, "found": found, "walkers": walkers}

    def restore(self, state: dict[str, Any], runs: Sequence[Sequence[Walker] | None]) -> None:
        """Go on from what :meth:`state` returned."""
        self.passed = state["passed"]
        for kind, held in _KINDS.items():
            known = state["found"][kind]
            getattr(self.found, kind).update({k: held.from_state_dict(v) for k, v in known.items()})
        for run, states in zip(runs, state["walkers"], strict=True):
            for walker, known in zip(run or (), states, strict=True):
                walker.restore(known)

    def visit(self, walkers: Sequence[Walker], call: Call, visit: Visit, by_chance: bool) -> None:
        """Add what the parents' features are at one view of one batch."""
        setting, found, space = self.setting, self.found, visit.space
        if visit.kind == "norm":
            node = visit.view.node
            found.squares.setdefault(node, Squares()).update(setting, walkers, call, node)
            return
        if visit.kind == "axis":
            rows = whole_rows(setting, walkers, call, visit.view.node)
            if space not in found.axes:
                found.axes[space] = Moments([x.shape[1] for x in rows], within=self.within)
            found.axes[space].update(*rows)
            return
        if visit.nest:
            if visit.nest not in found.nested:
                inner = _widths(setting, visit.nest[1])
                sizes = [a * b for a, b in zip(_widths(setting, space), inner, strict=True)]
                found.nested[visit.nest] = Moments(sizes)
            _update(setting, walkers, call, visit, found.nested[visit.nest])
            if by_chance:
                self._by_chance(visit.nest[1], walkers, call, visit)
            return
        if space not in found.moments:
            found.moments[space] = Moments(_widths(setting, space), within=self.within)
        _update(setting, walkers, call, visit, found.moments[space])
        if by_chance and space not in self.inside and len(setting.members(space)) > 1:
            self._by_chance(space, walkers, call, visit)

    def _by_chance(self, space: int, walkers: Sequence[Walker], call: Call, visit: Visit) -> None:
        """Of an inner space as many features as one head has, over as many samples."""
        chance = self.found.chance
        if space not in chance:
            few = [min(size, CHANCE_FEATURES) for size in _widths(self.setting, space)]
            chance[space] = Moments(few, within=False)
        _update(self.setting, walkers, call, visit, chance[space], shifted=True)

    def complete(self, later: set[int]) -> Gathered:
        """Hand out what belongs to no space that will be seen again, nor to one nested with it."""
        waiting = {k for group in self.groups if group & later for k in group} | later
        found = self.found
        return Gathered(
            _taken(found.moments, [k for k in found.moments if k not in waiting]),
            _taken(found.nested, [n for n in found.nested if n[0] not in waiting]),
            _taken(found.chance, [k for k in found.chance if k not in waiting]),
            _taken(found.axes, [k for k in found.axes if k not in waiting]),
            {node: found.squares.pop(node) for node in list(found.squares)},
        )


def _taken(found: dict[K, Moments], keys: Sequence[K]) -> dict[K, Moments]:
    """These entries, out of the table; those that saw nothing are dropped."""
    return {key: moments for key in keys if (moments := found.pop(key)).count}


def _tied(setting: Setting) -> list[set[int]]:
    """Spaces that are matched together: an axis of heads and the features inside them."""
    groups: list[set[int]] = []
    for space in setting.skeleton.graph.spaces:
        mine = {space.index, *space.structure}
        apart = [group for group in groups if not group & mine]
        groups = [*apart, mine.union(*(group for group in groups if group & mine))]
    return groups


def _widths(setting: Setting, space: int) -> list[int]:
    return [setting.width(m, space) for m in setting.members(space)]


def _nested_views(
    setting: Setting, views: dict[int, list[View]]
) -> dict[tuple[int, int], list[View]]:
    """Views of whole axes that are an outer and an inner space which the same parents have.

    Where layers read them; of what no layer reads as a whole, such as queries, where it is made.
    """
    graph, layers = setting.skeleton.graph, setting.skeleton.layers
    found: dict[Nest, list[View]] = {}
    read = dict.fromkeys((view.node, view.dim) for seen in views.values() for view in seen)
    for node, dim in read:
        _add_nests(setting, found, node, dim)
    made: dict[Nest, list[View]] = {}
    for layer in layers:
        _add_nests(setting, made, layer.tail, layer.feature_dim % len(graph.values[layer.tail]))
    return {**made, **found}


def _add_nests(setting: Setting, found: dict[Nest, list[View]], node: str, dim: int) -> None:
    """The nests in one dimension of a node that several parents compute."""
    graph = setting.skeleton.graph
    expr = graph.values[node][dim]
    for path, _ in located(expr):
        nest = nest_at(expr, path, graph.spaces)
        members = setting.members(nest[0]) if nest else ()
        known = len(members) > 1 and all(setting.links[m].node(node) for m in members)
        if nest and known and members == setting.members(nest[1]):
            found.setdefault(nest, []).append(View(node, dim, path))


def _views(setting: Setting, alone: bool) -> dict[int, list[View]]:
    """Views of every free space that at least two parents have, or one alone, where all of these
    can be seen."""
    found, fewest = {}, 1 if alone else 2
    for space, views in views_of(setting.skeleton).items():
        members = setting.members(space)
        if len(members) >= fewest and setting.skeleton.graph.spaces[space].free:
            seen = [v for v in views if all(setting.links[m].node(v.node) for m in members)]
            if seen:
                found[space] = seen
    return found


def _positions(features: Tensor) -> int:
    """A space inside an axis of heads or groups is seen once per head: their number may differ."""
    return features.numel() // features.shape[1]


def _update(
    setting: Setting,
    walkers: Sequence[Walker],
    call: Call,
    visit: Visit,
    moments: Moments,
    shifted: bool = False,
) -> None:
    """Add what the parents' features of a space are at one view.

    Args:
        shifted: give every parent but the first the values of other inputs of the batch.
    """
    view, space = visit.view, visit.space
    features: list[Tensor] = []
    for turn, m in enumerate(setting.members(space)):
        node = setting.links[m].node(view.node)
        assert node is not None
        expr = setting.parents[m].graph.values[node][view.dim]
        value = walkers[m].value(node)[0]
        found = comparable(value, call, m)
        dim = view.dim if found.dim() == value.dim() else 1
        if shifted:
            found = found.roll(turn * len(found) // len(value), 0)
        features.append((take_units if visit.nest else take)(found, expr, dim, view.path))
    if len({_positions(x) for x in features}) > 1:
        return
    if shifted:
        features = [_thinned(x, size) for x, size in zip(features, moments.sizes, strict=True)]
    try:
        moments.update(*features)
    except InputError as error:
        name = setting.skeleton.graph.spaces[space].name
        raise InputError(f"activations of space {name!r} (at {view.node}): {error}") from error


def _thinned(features: Tensor, count: int) -> Tensor:
    """So many of the features, spread evenly."""
    size = features.shape[1]
    return features if size == count else features[:, torch.linspace(0, size - 1, count).long()]
