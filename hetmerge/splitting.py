"""From a merged network and its parents to a partial model: what runs where, and the read-offs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from hetmerge.alignment import Alignment
from hetmerge.cutting import Cut
from hetmerge.errors import PlanError
from hetmerge.joining import join
from hetmerge.leastsquares import Normal, generator_of, pick, sample_positions
from hetmerge.network import Network
from hetmerge.ops.operand import columns_last, constant
from hetmerge.outline import ModuleNodes, Unit
from hetmerge.partial import PartialModel, ReadOff
from hetmerge.partition import identity
from hetmerge.pieces import Piece, extract
from hetmerge.projection import Projector
from hetmerge.refit import Fitter
from hetmerge.resizing import set_tensors
from hetmerge.setting import build_setting
from hetmerge.systems import MOST_ROWS, RIDGE
from hetmerge.tracing import export


def split(
    projector: Projector, merged: Network, cut: Cut, fitter: Fitter | None, names: Sequence[str]
) -> PartialModel:
    """The trunk of the merged network and the rest of every parent behind the cut.

    Args:
        merged: holds the final weights of the trunk.
        fitter: has refitted the trunk and kept what both sides are at the cut; read-offs and heads
            are refitted behind it. None where they are those of the plan and the parents.
        names: of the heads, one per parent.

    Raises:
        PlanError: a part cannot be kept as plain data.
    """
    setting = projector.setting
    trunk = _piece(merged, setting.call, None, cut.unit)
    program: dict[str, Any] = {"trunk": trunk.program, "heads": {}}
    tensors = {f"trunk.model.{name}": value for name, value in trunk.tensors.items()}
    base = setting.parents[setting.alignment.base]
    trainable = {f"trunk.model.{name}": flag for name, flag in base.source_parameters.items()}
    heads = zip(names, setting.parents, cut.own, strict=True)
    for m, (name, parent, unit) in enumerate(heads):
        read, found = _read_off(projector, cut, m, fitter)
        if fitter is not None:
            parent = _refitted(fitter, cut, m, name, ReadOff(**read), found)
        rest = _piece(parent, setting.call, unit, None)
        place = f"heads.{name}"
        program["heads"][name] = {"read": read, "rest": rest.program}
        tensors.update({f"{place}.read.{k}": value for k, value in found.items()})
        tensors.update({f"{place}.rest.model.{k}": value for k, value in rest.tensors.items()})
        flags = setting.parents[m].source_parameters.items()
        trainable.update({f"{place}.rest.model.{k}": flag for k, flag in flags})
    places = range(len(setting.skeleton.graph.outputs))
    joins = [join(projector, i, _values(fitter, i)) for i in places]
    program["joins"] = [spec for spec, _ in joins]
    for i, (_, found) in enumerate(joins):
        tensors.update({f"joins.{i}.{name}": value for name, value in found.items()})
    model = PartialModel(program)
    set_tensors(model, tensors)
    for name, parameter in model.named_parameters():
        if parameter.is_floating_point():
            parameter.requires_grad_(trainable.get(name, True))
    return model.eval()


def _piece(network: Network, call: Any, start: Unit | None, end: Unit | None) -> Piece:
    """Of an export whose sizes are free, so that the module takes batches of any size."""
    program = export(network.model, *call, free_sizes=True)
    nodes = {n.name: n for n in program.graph.nodes}
    table = ModuleNodes.of(list(program.graph.nodes))
    if end is not None:
        return extract(program, network.state, [_output(table, end)])
    assert start is not None
    old = list(network.graph.program.graph.nodes)[-1]
    new = list(program.graph.nodes)[-1]
    known = {a.name: b.name for a, b in zip(old.all_input_nodes, new.all_input_nodes, strict=True)}
    ends = [nodes[known[name]] for name in network.graph.outputs]
    return extract(program, network.state, ends, _output(table, start))


def _output(table: ModuleNodes, unit: Unit) -> Node:
    node = table.output(unit.paths)
    if node is None:
        raise PlanError(
            f"stop_at: unit {unit.paths[-1]!r} runs nothing at other sizes of its input"
        )
    return node


def _read_off(
    projector: Projector, cut: Cut, parent: int, fitter: Fitter | None
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """How the parent's features at the cut are read from the trunk's: description and tensors."""
    partition = projector.partitions[cut.space]
    labels, dense = partition.labels[parent], None
    if parent in partition.readoff:
        dense = partition.dense(parent).double()
    like = next(iter(projector.setting.parents[parent].state.values()))
    dtype = like.dtype
    spec = {
        "dim": cut.dim,
        "sources": partition.width,
        "targets": len(labels),
        "dense": fitter is not None or dense is not None,
        "dtype": str(dtype).removeprefix("torch."),
    }
    if not spec["dense"]:
        return spec, {"index": labels.to(like.device, copy=True)}
    if dense is None:
        dense = torch.eye(partition.width, dtype=torch.float64)[labels]
    dense = dense.to(like.device)
    bias = dense.new_zeros(len(dense))
    if fitter is not None:
        dense, bias = _fitted(fitter, cut, parent, dense)
    return spec, {"weight": dense.to(dtype), "bias": bias.to(dtype)}


def _fitted(fitter: Fitter, cut: Cut, parent: int, prior: Tensor) -> tuple[Tensor, Tensor]:
    """Ridge towards the plan's read-off: the parent's features from the trunk's own."""
    normal = Normal()
    theirs = fitter.parents[parent].value(cut.own[parent].output)
    generator = generator_of(fitter.seed, -1 - parent)
    for mine, wanted in zip(fitter.walker.value(cut.unit.output), theirs, strict=True):
        x, y = (value.movedim(cut.dim, -1) for value in (mine, wanted))
        positions = sample_positions(x.shape, 0, MOST_ROWS // len(theirs), generator)
        rows = pick(x, positions, 0)[0].T
        parts = [columns_last(rows), constant(rows.new_ones(1), len(rows))]
        normal.add([parts], pick(y, positions, 0))
    start = torch.cat([prior.T, prior.new_zeros(1, len(prior))])[None]
    solved = normal.solve(start, RIDGE, bias=True)[0]
    return solved[:-1].T.contiguous(), solved[-1]


def _refitted(
    fitter: Fitter, cut: Cut, parent: int, name: str, read: ReadOff, tensors: dict[str, Tensor]
) -> Network:
    """The parent with the layers behind the cut solved for the features that it now reads."""
    setting = fitter.setting
    network, stages = setting.parents[parent], setting.alignment.stages[parent]
    slots = [list[int | None](range(len(stage.units))) for stage in stages]
    alone = build_setting([network], Alignment([stages], [slots], {}, 0), setting.call)
    spaces = {s.index: identity(s.size, (0,)) for s in network.graph.spaces}
    mine = Network(network.model, setting.call, network.name, fold=False)
    mine.replaced = network.replaced
    heads = Fitter(
        mine,
        Projector(alone, spaces, [1.0], fitter.projector.backend),
        fitter.calls,
        refit=True,
        repair="none",
        ridge=fitter.ridge,
        seed=fitter.seed,
        progress=fitter.progress,
    )
    set_tensors(read, tensors)
    stream = fitter.walker.value(cut.unit.output)
    with torch.no_grad():
        heads.start(cut.own[parent].output, [read(x) for x in stream])
    found = heads.run()
    fitter.found.fits += [
        replace(fit, layers=tuple(f"{name}.{layer}" for layer in fit.layers)) for fit in found.fits
    ]
    return mine


def _values(fitter: Fitter | None, place: int) -> Callable[[int], list[Tensor]] | None:
    """Per parent, its values of one output, where they can be standardised by them."""
    if fitter is None:
        return None
    parents = list(zip(fitter.parents, fitter.setting.parents, strict=True))

    def of(member: int) -> list[Tensor]:
        walker, parent = parents[member]
        return walker.value(parent.graph.outputs[place])

    return of
