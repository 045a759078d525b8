"""What a merge of checkpoints will make and take, from configurations and headers alone."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from hetmerge.alignment import align_by_position
from hetmerge.architecture import check_reached, target_of, widths_of
from hetmerge.batches import Call, positions
from hetmerge.calibration import Statistics
from hetmerge.cost import Ledger, Meter, estimate, forward_flops, size_of
from hetmerge.devices import call_on, device_of
from hetmerge.dial import widths_foreseen
from hetmerge.errors import InputError
from hetmerge.family_sizes import fit_family
from hetmerge.fields import LAYER_TYPES, fields_of, leaf
from hetmerge.gathering import (
    CHANCE_FEATURES,
    Nest,
    Visit,
    by_unit,
    hold_repeats,
    in_repeats,
    visits_of,
)
from hetmerge.huggingface import configuration_notes, merged_config
from hetmerge.judging import judging_bytes
from hetmerge.lazy import Checkpoint, empty
from hetmerge.maps_cost import largest_map, maps_bytes, maps_flops, sizes_at
from hetmerge.memory import resident, total
from hetmerge.network import Network
from hetmerge.on_disk import stored_type
from hetmerge.ops.panels import length
from hetmerge.ops.selection import STRIP
from hetmerge.options import Options
from hetmerge.polish_cost import PolishCost, polish_cost
from hetmerge.polishing import Polish
from hetmerge.relatives import relatives
from hetmerge.scope import Scope, shrinks
from hetmerge.setting import Setting, build_setting
from hetmerge.sizes import SizesOnly
from hetmerge.vocabulary import Vocabulary
from hetmerge.weights import OnDisk

_TRIALS = (
    "match='auto': {} ways of matching are tried, each from half of the inputs at most; the disk "
    "holds one trial at a time, before the result"
)
SIDE, SIDE_ELSEWHERE = 1024, 8192  # of the products that tell how fast this machine is


@dataclass(frozen=True)
class Forecast:
    """A merge before any weight is read.

    Attributes:
        parents: per parent its folder, class, parameters, bytes and type on disk.
        model: class of the result.
        changed: fields of its configuration that differ from the base parent's -> value.
        parameters: of the result.
        bytes: of its weights on disk.
        dtype: they are written in.
        widths: space -> (sizes in the parents, merged size).
        merged, copied, dropped: tensors of the result that come from several parents or from one,
            and tensors of parents that nothing reads.
        process_bytes: what the process holds before it starts.
        planning_bytes, applying_bytes: what comes on top while moments are gathered and matched,
            and while the merged network is written.
        polish: of training the finished merge, where that is asked for.
        flops: floating-point operations in all.
        seconds: what they take at the rate of matrix products on this machine.
        notes: remarks.
        maps_bytes: of dense maps on disk: once in the plan, and once more while it is made.
        device: where it is computed.
        largest_bytes: of a tensor on disk.
    """

    parents: list[dict[str, Any]]
    model: str
    changed: dict[str, Any]
    parameters: int
    bytes: int
    dtype: str
    widths: dict[str, tuple[list[int | None], int]]
    merged: int
    copied: int
    dropped: int
    process_bytes: int
    planning_bytes: int
    applying_bytes: int
    maps_bytes: int
    flops: int
    seconds: float
    notes: list[str]
    device: str
    largest_bytes: int
    polish: PolishCost | None = None

    @property
    def working_bytes(self) -> int:
        """Most memory on the device where it is computed, over what the process holds."""
        training = self.polish.peak_bytes if self.polish else 0
        return max(self.planning_bytes, self.applying_bytes, training)

    @property
    def peak_bytes(self) -> int:
        """Of the whole process in the memory of the CPU: computing elsewhere, a tensor that passes
        through in two types."""
        passing = self.working_bytes if self.device == "cpu" else 2 * self.largest_bytes
        return self.process_bytes + passing

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {
            **asdict(self),
            "peak_bytes": self.peak_bytes,
            "working_bytes": self.working_bytes,
        }


def forecast(
    models: Sequence[Checkpoint],
    calls: Sequence[Call],
    options: Options,
    out_dtype: torch.dtype | None = None,
    vocabulary: Vocabulary | None = None,
    polish: Polish | None = None,
) -> Forecast:
    """Trace the parents and the result without weights, and walk through the merge with sizes.

    Which units meet is not known without activations; it changes no size. Units are spread evenly.

    Args:
        models: the parents.
        calls: batches of the shapes that the merge will get; their values do not matter.
        polish: how the finished merge will be trained.

    Raises:
        PlanError: no configuration of the family has the merged sizes.
        AlignmentError: the parents do not correspond.
    """
    device = device_of(models)
    calls = [call_on(call, device) for call in calls]
    parents = relatives(models)
    networks = [
        Network(m, calls[0], str(models[i].folder), member=i, fold=False)
        for i, m in enumerate(parents.models)
    ]
    alignment = align_by_position(networks, options.missing)
    setting = build_setting(networks, alignment, calls[0])
    nothing = Statistics({}, {}, {}, {}, {}, {}, {}, 0, setting, tuple(calls), vocabulary)
    target = target_of(setting, options.architecture) if options.architecture else None
    if target:
        options = replace(options, architecture=None, width=widths_of(setting, target))
    options = replace(options, importance="weights")
    tried, left = _tried(setting, calls, options)
    width, foreseen = options.width, list[str]()
    if options.budget is not None:
        width, note = widths_foreseen(nothing, replace(options, match=tried[-1]))
        foreseen.append(note)
    matched = SizesOnly(nothing, options).match(width)
    partitions, notes = fit_family(setting, matched.partitions)
    widths = {k: partition.width for k, partition in partitions.items()}
    if target:
        check_reached(setting, target, widths)
    base: Any = setting.skeleton.model
    config, program = merged_config(setting, widths)
    model = empty(type(base), config)
    state = OnDisk({}, {}, setting.skeleton.state.dtype, "")
    merged = Network(model, setting.call, "merged model", fold=False, state=state, program=program)
    applying = estimate(merged, setting, calls, refit=options.refit, auto=options.ridge == "auto")
    dtype = out_dtype or stored_type(setting)
    parameters = sum(p.numel() for p in model.parameters())
    planning = max(planning_bytes(setting, calls, replace(options, match=m)) for m in tried)
    single = applying.flops + _planning_flops(setting, calls, options)
    chosen = max(maps_flops(setting, m, calls) for m in tried)
    if len(tried) > 1:
        single += len(tried) * single // 2 + chosen
        planning = max(planning, judging_bytes(setting, calls), applying.peak_bytes)
        notes = [*notes, *left, _TRIALS.format(len(tried))]
    trained = None
    if polish:
        trained = polish_cost(merged, setting, calls, polish.steps, models[0].state.dtype)
        single += trained.flops
    origins = [_parents_of(setting, name) for name in setting.skeleton.graph.tensors]
    old, new = fields_of(base.config), fields_of(config)
    return Forecast(
        parents=[_described(model) for model in models],
        model=type(base).__name__,
        changed={k: v for k, v in new.items() if old.get(k) != v and leaf(k) != LAYER_TYPES},
        parameters=parameters,
        bytes=parameters * dtype.itemsize,
        dtype=str(dtype).removeprefix("torch."),
        widths={
            space.name: ([_width(setting, m, space.index) for m in range(len(models))], widths[k])
            for k in widths
            if (space := setting.skeleton.graph.spaces[k])
        },
        merged=sum(count > 1 for count in origins),
        copied=sum(count == 1 for count in origins),
        dropped=sum(len(network.graph.dead) for network in networks),
        process_bytes=resident(),
        planning_bytes=planning,
        applying_bytes=applying.peak_bytes + max(largest_map(setting, m) for m in tried),
        maps_bytes=max(maps_bytes(setting, m) for m in tried),
        flops=single + chosen,
        seconds=(single + chosen) / _rate(device),
        notes=[*parents.notes, *configuration_notes(setting), *foreseen, *notes, *applying.notes],
        polish=trained,
        device=device.type,
        largest_bytes=max(
            place.stop - place.start for model in models for place in model.state.stored.values()
        ),
    )


def _tried(
    setting: Setting, calls: Sequence[Call], options: Options
) -> tuple[list[str], list[str]]:
    """The ways of matching that are planned, and why others are not. What "auto" tries last takes
    most memory as "pca"; which streams have no preferred basis is known once scales are read."""
    if options.match != "auto":
        return [options.match], []
    fewer = options.budget is not None or shrinks(setting, options)
    found = ["zip"] if fewer else ["permute", "zip"]
    try:
        check_memory(setting, calls, replace(options, match="pca"))
    except InputError as error:
        return found, [f"match='auto': selections and 'pca' cannot be tried: {error}"]
    return [*found, "pca"], []


def _width(setting: Setting, parent: int, space: int) -> int | None:
    return setting.width(parent, space) if space in setting.links[parent].spaces else None


def _parents_of(setting: Setting, name: str) -> int:
    return sum(name in link.tensors for link in setting.links)


def _described(model: Checkpoint) -> dict[str, Any]:
    places = set(model.state.stored.values())
    return {
        "folder": str(model.folder),
        "class": type(model.module).__name__,
        "parameters": sum(p.numel() for p in model.module.parameters()),
        "bytes": sum(place.stop - place.start for place in places),
        "dtype": str(max(places, key=lambda p: p.stop - p.start).dtype).removeprefix("torch."),
    }


def check_memory(setting: Setting, calls: Sequence[Call], options: Options) -> None:
    """Planning a candidate fits into this machine, or its device.

    Raises:
        InputError: it does not.
    """
    device = setting.parents[0].state.device.type
    there = total(device)
    needed = planning_bytes(setting, calls, options) + (resident() if device == "cpu" else 0)
    if needed > there > 0:
        raise InputError(
            f"match: planning {options.match!r} takes {size_of(needed)} of memory, {device} has "
            f"{size_of(there)}"
        )


# Space -> bytes by what they are moments of: the space, a whole axis, or with an inner space.
_Held = dict[int, dict[tuple[str, Nest | None], int]]


def planning_bytes(setting: Setting, calls: Sequence[Call], options: Options) -> int:
    """Most memory while the parents' moments are gathered unit by unit, and spaces matched in
    between; on top of what the process holds."""
    meter = Meter()
    ledgers = [Ledger(link.parent, 1.0, 1, meter, link.again) for link in setting.links]
    scope = Scope.of(setting, options)
    visits = visits_of(setting, scope)
    hold_repeats(setting, ledgers, visits)
    segments = by_unit(setting, visits)
    last = {visit.space: i for i, segment in enumerate(segments) for visit in segment}
    held: _Held = {}  # the moments of spaces that will be seen again
    most, streams = 0.0, 0.0
    for i, segment in enumerate(segments):
        meter.peak = 0.0
        for visit in segment:
            _walk(setting, ledgers, visit)
            kinds = held.setdefault(visit.space, {})
            kinds[visit.kind, visit.nest] = _moments_bytes(sizes_at(setting, visit), scope.within)
        for ledger in ledgers:
            ledger.read.clear()
        # The streams of the other batches stand beside the batch that runs.
        waiting = streams * (len(calls) - 1)
        most = max(most, meter.peak + waiting + _total(held))
        streams = sum(ledger.bytes for ledger in ledgers)
        complete = [visit for visit in segment if last[visit.space] == i]
        for visit in complete:
            own = sum(held[visit.space].values())
            matching = _matching_bytes(sizes_at(setting, visit), own, options)
            most = max(most, streams * len(calls) + _total(held) - own + matching)
        for visit in complete:
            held.pop(visit.space, None)
    return int(most)


def _total(held: _Held) -> int:
    return sum(sum(own.values()) for own in held.values())


def _walk(setting: Setting, ledgers: Sequence[Ledger], visit: Visit) -> None:
    for m in setting.members(visit.space):
        node = setting.links[m].node(visit.view.node)
        if node is not None:
            ledgers[m].compute([node])
    for ledger, names in zip(ledgers, in_repeats(setting, visit), strict=True):
        ledger.release(names)


def _moments_bytes(sizes: Sequence[int], within: bool) -> int:
    few = [min(size, CHANCE_FEATURES) for size in sizes]
    return 8 * (length(sizes, within) + length(few, False))


def _matching_bytes(sizes: Sequence[int], moments: int, options: Options) -> int:
    """Similarities of all pairs in float64, beside the moments and then beside the matcher's."""
    square = 8 * sum(sizes) ** 2
    if options.budget is not None or options.match in ("select", "pca"):
        # The covariance beside two triangles.
        return max(moments + square, square + 8 * sum(sizes) * (sum(sizes) + STRIP))
    if options.match == "identity":
        return moments
    if options.match == "permute":  # the cost matrix, and the solver's copy of it
        return square + 8 * max(sizes) * (sum(sizes) + 2 * min(sizes))
    return max(moments + square, square + square // 2)


def _planning_flops(setting: Setting, calls: Sequence[Call], options: Options) -> int:
    """Two passes of every parent, and products of every pair of features that is seen; within a
    budget moments are gathered twice, and selections tell what is lost."""
    tokens = sum(positions(call) for call in calls)
    growth = len(calls)
    passes = sum(forward_flops(link.parent, growth, link.again) for link in setting.links)
    pairs = 0
    for visit in visits_of(setting, Scope(alone=Scope.of(setting, options).alone)):
        pairs += sum(sizes_at(setting, visit)) ** 2
    gathering = passes + tokens * pairs
    budget = options.budget is not None
    again = gathering + maps_flops(setting, "select", calls) if budget else 0
    return int(gathering + passes / growth + again)


def _rate(device: torch.device) -> float:
    """Operations per second of float32 matrix products there."""
    side = SIDE if device.type == "cpu" else SIDE_ELSEWHERE
    x = torch.ones(side, side, device=device)
    float((x @ x)[0, 0])  # the first one also starts threads, or the device
    began = time.perf_counter()
    float((x @ x)[0, 0])
    return 2 * side**3 / (time.perf_counter() - began)
