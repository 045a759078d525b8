"""The oracle: free spaces leave the outputs unchanged, pinned ones change them."""

from __future__ import annotations

import functools
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from zoo import ALL, TRANSFORMERS, Case, prepared

from hetmerge.tracing import Space, SpaceGraph, trace
from hetmerge.tracing.conventions import inference
from hetmerge.tracing.verify import Trial, cycles, relative_change

CASES = {case.name: case for case in ALL}
MASKED = [case.name for case in TRANSFORMERS if set(case.inputs(0)[1]) == {"input_ids"}]
MOVED = 1e-6  # a relative change above this is a change, in any precision


@functools.cache
def traced(name: str) -> tuple[Trial, SpaceGraph, list[Tensor]]:
    """A runner on other inputs than those of the trace, the graph, and the outputs."""
    case = CASES[name]
    model = prepared(case)
    args, kwargs = case.inputs(0)
    graph = trace(model, args, kwargs)
    trial = Trial(model, case.inputs(1))
    with inference(trial.model):
        return trial, graph, trial.baseline()[0]


def limit(case: Case) -> float:
    return 1e-5 if case.single or case.dtype == torch.float32 else 1e-9


@pytest.fixture(params=CASES.values(), ids=CASES.keys())
def case(request: pytest.FixtureRequest) -> Case:
    found: Case = request.param
    return found


def change(case: Case, graph: SpaceGraph, permutations: dict[int, Tensor]) -> float:
    trial, _, before = traced(case.name)
    with inference(trial.model):
        return relative_change(before, trial.run(graph.permute(trial.state, permutations)))


def moves(case: Case, graph: SpaceGraph, space: Space) -> bool:
    """Whether a few cycles change the outputs: one may commute with what the model does."""
    generator = torch.Generator().manual_seed(2)
    return any(
        change(case, graph, {space.index: cycles(space, graph.spaces, generator)}) > MOVED
        for _ in range(4)
    )


def test_free_spaces_leave_the_outputs_unchanged(case: Case) -> None:
    _, graph, _ = traced(case.name)
    generator = torch.Generator().manual_seed(1)
    free = [space for space in graph.spaces if space.free]
    drawn = {space.index: cycles(space, graph.spaces, generator) for space in free}
    changes = {graph.spaces[i].name: change(case, graph, {i: cycle}) for i, cycle in drawn.items()}
    changes["all"] = change(case, graph, drawn)
    assert {name: found for name, found in changes.items() if not found < limit(case)} == {}


def test_pinned_spaces_change_the_outputs(case: Case) -> None:
    _, graph, _ = traced(case.name)
    quiet = {s.name for s in graph.spaces if not s.free and not moves(case, graph, s)}
    assert quiet == case.soft | {s.name for s in graph.spaces if unread(s)}


def unread(space: Space) -> bool:
    return space.pins == ("not read for these inputs",)


def test_free_spaces_matter(case: Case) -> None:
    """Permuting one tensor of a free space without the others is noticed: no test is vacuous."""
    _, graph, _ = traced(case.name)
    quiet = set()
    for space in graph.spaces:
        tensors = list(dict.fromkeys(place.tensor for place in space.where))
        if space.free and len(tensors) > 1:
            alone = [
                replace(graph, tensors={tensor: graph.tensors[tensor]}, aliases={})
                for tensor in tensors
            ]
            if not any(moves(case, graph, space) for graph in alone):
                quiet.add(space.name)
    assert quiet == case.idle


@pytest.mark.parametrize("name", [case.name for case in ALL if case.free is not None])
def test_number_of_free_spaces(name: str) -> None:
    _, graph, _ = traced(name)
    free = [space.name for space in graph.spaces if space.free]
    assert len(free) == CASES[name].free, free


def test_every_operator_has_a_rule(case: Case) -> None:
    _, graph, _ = traced(case.name)
    assert set(graph.unknown) == case.unknown


@pytest.mark.parametrize("name", MASKED)
def test_the_same_spaces_at_another_shape_with_padding(name: str) -> None:
    case = CASES[name]
    _, graph, _ = traced(name)
    generator = torch.Generator().manual_seed(9)
    mask = torch.ones(3, 13, dtype=torch.long)
    mask[1, 9:] = 0
    ids = torch.randint(3, 96, (3, 13), generator=generator)
    trial = Trial(prepared(case), ((), {"input_ids": ids, "attention_mask": mask}))
    drawn = {s.index: cycles(s, graph.spaces, generator) for s in graph.spaces if s.free}
    with inference(trial.model):
        before = trial.baseline()[0][0][mask.bool()]
        after = trial.run(graph.permute(trial.state, drawn))[0][mask.bool()]
    assert relative_change([before], [after]) < limit(case)
