"""Depth: the stages of all parents side by side, and which unit meets which."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from hetmerge.batches import Call, comparable, positions, samples
from hetmerge.correspondence import Slots
from hetmerge.errors import AlignmentError, InputError
from hetmerge.network import Network, release
from hetmerge.ops.segments import align_depth, fixed_depth
from hetmerge.ops.similarity import CKA
from hetmerge.outline import (
    Stage,
    containers_below,
    custom_stages,
    find_containers,
    lone_containers,
    stages_in,
)
from hetmerge.progress import Progress
from hetmerge.repeating import repeated
from hetmerge.sites import Pattern, SiteMap

SAMPLES = 500  # that CKA looks at
DEPTHS = ("segment", "layer", "uniform", "head", "tail")


@dataclass(frozen=True)
class Alignment:
    """Depth alignment of N parents.

    Attributes:
        stages: per parent, its stages (the same number for all).
        slots: per parent, per stage, per position of the merged network: its unit or None.
        similarity: stage name -> per parent, CKA [deepest parent's units, this parent's units].
        base: the parent whose modules carry the merged network.
    """

    stages: list[list[Stage]]
    slots: list[Slots]
    similarity: dict[str, list[Tensor]]
    base: int

    @property
    def names(self) -> list[str]:
        """Stage names, those of the base."""
        return [stage.name for stage in self.stages[self.base]]

    def state(self) -> dict[str, Any]:
        """All but the stages, which tracing finds again."""
        return {"slots": self.slots, "similarity": self.similarity, "base": self.base}

    def depth(self, stage: int) -> int:
        """Units of the merged network in this stage."""
        return max(len(stages[stage].units) for stages in self.stages)


def align(
    networks: Sequence[Network],
    batches: Sequence[Call],
    *,
    depth: str = "segment",
    missing: str = "zero",
    blocks: Sequence[Any] | None = None,
    progress: Progress | None = None,
) -> Alignment:
    """Find the stages of every parent and align their units.

    Args:
        depth: "segment" (SMA) or "layer" (LMA) by CKA, or the positions "uniform", "head", "tail".
        missing: what a parent has where it lacks a unit: nothing ("zero"), or "repeat" the unit
            before it, where that gives the features that it takes.
        blocks: per parent, per stage, the module paths of its units; default: found.

    Raises:
        AlignmentError: the parents' stages do not correspond.
    """
    stages = find_stages(networks, blocks)
    similarity = {}
    if stages[0] and len(networks) > 1:
        similarity = _similarity(networks, stages, batches, progress or Progress(False))
    return _aligned(networks, stages, similarity, depth, missing)


def align_by_position(networks: Sequence[Network], missing: str) -> Alignment:
    """The units of every parent spread evenly: nothing is run, the merged depths are the same."""
    return _aligned(networks, find_stages(networks), {}, "uniform", missing)


def _aligned(
    networks: Sequence[Network],
    stages: list[list[Stage]],
    similarity: dict[str, list[Tensor]],
    depth: str,
    missing: str,
) -> Alignment:
    ranks = _ranks(networks, stages)
    base = max(range(len(networks)), key=ranks.__getitem__)
    slots: list[Slots] = [[list(range(len(s.units))) for s in parent] for parent in stages]
    sites = [SiteMap(network, mine) for network, mine in zip(networks, stages, strict=True)]
    for s in range(len(stages[0])):
        deepest = max(range(len(networks)), key=lambda m: len(stages[m][s].units))
        places = stages[deepest][s].units
        for m, parent in enumerate(stages):
            tables = similarity.get(stages[base][s].name)
            table = tables[m] if tables else torch.zeros(0)
            units = parent[s].units
            others = _others(sites[deepest].patterns(s), sites[m].patterns(s))
            starts = _starts(table, others, depth)
            row = [starts.index(i) if i in starts else None for i in range(len(places))]
            if missing == "repeat":
                row = repeated(row, (networks[m], units), (networks[deepest], places))
            slots[m][s] = row
    return Alignment(stages, slots, similarity, base)


def _ranks(
    networks: Sequence[Network], stages: Sequence[Sequence[Stage]]
) -> list[tuple[int, int, int]]:
    """Units, then numbers, then the first given: the order decides between equal shapes only."""
    return [
        (sum(len(s.units) for s in mine), n.numbers, -m)
        for m, (n, mine) in enumerate(zip(networks, stages, strict=True))
    ]


def find_stages(
    networks: Sequence[Network], blocks: Sequence[Any] | None = None
) -> list[list[Stage]]:
    """The corresponding stages of every parent."""
    if blocks is not None:
        if len(blocks) != len(networks):
            raise AlignmentError(f"blocks: got {len(blocks)} lists for {len(networks)} models")
        found = [custom_stages(b, n.nodes) for b, n in zip(blocks, networks, strict=True)]
    else:
        paths = _containers(networks)
        found = [_forced(network, paths) for network in networks]
    counts = {len(stages) for stages in found}
    if len(counts) > 1:
        raise AlignmentError(
            "the parents have "
            + " and ".join(str(len(stages)) for stages in found)
            + " stages; allowed: the same number (name them with blocks=)"
        )
    _refuse_turns(networks, found)
    return found


def _refuse_turns(networks: Sequence[Network], found: Sequence[Sequence[Stage]]) -> None:
    """What a parent without a unit carries past it is then not the unit before in its list."""
    for s, mine in enumerate(zip(*found, strict=True)):
        depths = [len(stage.units) for stage in mine]
        for network, stages in zip(networks, found, strict=True) if len(set(depths)) > 1 else ():
            first, last = _span(network, stages[s])
            for other in stages:
                start, stop = _span(network, other)
                if other is not stages[s] and first < stop and start < last:
                    raise AlignmentError(
                        f"{network.name}: the units of {mine[0].name!r} run in turn with those of "
                        f"{other.name!r}; allowed there: equal depths, not "
                        + " and ".join(map(str, depths))
                    )


def _span(network: Network, stage: Stage) -> tuple[int, int]:
    """Where its first unit ends, and its last."""
    order = network.nodes.order
    return order[stage.units[0].output], order[stage.units[-1].output]


def _containers(networks: Sequence[Network]) -> list[str]:
    """Paths every parent has; where one parent repeats what is inside of another's, the outer."""
    paths: list[str] = []
    for finder in (find_containers, lone_containers):
        found = dict.fromkeys(path for n in networks for path in finder(n.model, n.nodes))
        shared = [path for path in found if all(_has(n.model, path) for n in networks)]
        outermost = [path for path in shared if not any(_inside(path, p) for p in shared)]
        paths += [
            path
            for path in outermost
            if not any(path == p or _inside(path, p) or _inside(p, path) for p in paths)
        ]
    return [inner for path in paths for inner in _where_depth_differs(networks, path)]


def _where_depth_differs(networks: Sequence[Network], path: str) -> list[str]:
    """A container, or those inside of its units where only they differ in length, such as the
    blocks of the stages of a network that is a list of stages."""
    if len(_lengths(networks, path)) > 1:
        return [path]
    found = dict.fromkeys(p for n in networks for p in containers_below(n.model, path, n.nodes))
    inner = [p for p in found if all(_has(n.model, p) for n in networks)]
    outermost = [p for p in inner if not any(_inside(p, other) for other in inner)]
    deeper = [q for p in outermost for q in _where_depth_differs(networks, p)]
    return deeper if any(len(_lengths(networks, p)) > 1 for p in deeper) else [path]


def _lengths(networks: Sequence[Network], path: str) -> set[int]:
    return {len(list(n.model.get_submodule(path).children())) for n in networks}


def _inside(path: str, other: str) -> bool:
    return path != other and (other == "" or path.startswith(f"{other}."))


def _has(model: nn.Module, path: str) -> bool:
    try:
        return isinstance(model.get_submodule(path), (nn.Sequential, nn.ModuleList))
    except AttributeError:
        return False


def _forced(network: Network, paths: list[str]) -> list[Stage]:
    found = []
    for path in paths:
        found += stages_in(network.model.get_submodule(path), path, network.nodes)
    order = network.nodes.order
    return sorted(found, key=lambda stage: order[stage.units[0].output])


def _others(places: Sequence[Pattern], units: Sequence[Pattern]) -> Tensor:
    """[deep, shallow] whether the code of the two does something else."""
    return torch.tensor([[place != unit for unit in units] for place in places])


def _starts(similarity: Tensor, others: Tensor, depth: str) -> list[int]:
    """Where every unit stands: where its code does the same if that can be, then by CKA."""
    deep, shallow = others.shape
    if deep == shallow:
        return list(range(deep))
    if depth not in ("segment", "layer"):
        return fixed_depth(deep, shallow, depth)
    # Layers that pass their input on tie up to rounding; a tie must not be decided by rounding.
    similarity = similarity.double().round(decimals=6)
    if depth == "segment":  # of "layer", a unit stands for others than the one in its place
        similarity = similarity - (shallow + 1) * others.to(similarity)
    return align_depth(similarity, objective=depth)


def _similarity(
    networks: Sequence[Network],
    stages: list[list[Stage]],
    batches: Sequence[Call],
    progress: Progress,
) -> dict[str, list[Tensor]]:
    """CKA between the unit outputs of each stage: every parent against the deepest one."""
    ranks = _ranks(networks, stages)
    names = [stage.name for stage in stages[max(range(len(stages)), key=ranks.__getitem__)]]
    deepest = [
        max(range(len(stages)), key=lambda m: (len(stages[m][s].units), *ranks[m]))
        for s in range(len(names))
    ]
    scores = [[CKA() for _ in stages] for _ in names]
    for call in progress.track(_enough(batches), "CKA of layers"):
        features = [_outputs(n, mine, call) for n, mine in zip(networks, stages, strict=True)]
        for s in range(len(names)):
            for m, mine in enumerate(features):
                if m != deepest[s]:
                    _score(scores[s][m], features[deepest[s]][s], mine[s], names[s])
    return {
        name: [
            torch.eye(len(stages[m][s].units)) if m == deepest[s] else scores[s][m].value().cpu()
            for m in range(len(stages))
        ]
        for s, name in enumerate(names)
    }


def _score(score: CKA, deep: list[Tensor], other: list[Tensor], stage: str) -> None:
    try:
        score.update(deep, other)
    except InputError as error:
        raise InputError(f"activations of stage {stage!r}: {error}") from error


def _enough(batches: Sequence[Call]) -> Sequence[Call]:
    """The first batches that hold enough samples: more do not change where units stand."""
    seen = 0
    for count, call in enumerate(batches, 1):
        seen += positions(call)
        if seen >= SAMPLES:
            return batches[:count]
    return batches


def _outputs(network: Network, stages: Sequence[Stage], call: Call) -> list[list[Tensor]]:
    """Per stage, per unit, what CKA sees of its output."""
    walker = network.walk([call])
    found: dict[str, Tensor] = {}
    for unit in network.nodes.in_turn(stages):
        found[unit.output] = _samples(walker.value(unit.output)[0], call, network.member)
        release([network])
    return [[found[unit.output] for unit in stage.units] for stage in stages]


def _samples(output: Tensor, call: Call, member: int | None) -> Tensor:
    """[samples, ...]: of tokens, up to SAMPLES positions that count, spread evenly."""
    if positions(call) == samples(call) or output.dim() != 3:
        return output
    found = comparable(output, call, member).reshape(-1, output.shape[-1])
    return found[torch.linspace(0, len(found) - 1, min(SAMPLES, len(found))).long()]
