"""The oracle: free spaces leave the outputs unchanged, pinned ones change them."""

from __future__ import annotations

import functools

import pytest
import torch
from torch import nn
from zoo import ALL, Case, randomise

from hetmerge.tracing import SpaceGraph, trace
from hetmerge.tracing.conventions import inference
from hetmerge.tracing.verify import Trial, cycles, relative_change

CASES = {case.name: case for case in ALL}


@functools.cache
def traced(name: str) -> tuple[nn.Module, SpaceGraph]:
    case = CASES[name]
    torch.manual_seed(0)
    model = randomise(case.build())
    args, kwargs = case.inputs(0)
    return model, trace(model, args, kwargs)


@pytest.fixture(params=CASES.values(), ids=CASES.keys())
def case(request: pytest.FixtureRequest) -> Case:
    found: Case = request.param
    return found


def test_free_spaces_leave_the_outputs_unchanged(case: Case) -> None:
    model, graph = traced(case.name)
    args, kwargs = case.inputs(1)
    limit = 1e-5 if case.single else 1e-9
    changes = graph.verify(model, args, kwargs, tolerance=limit)
    assert max(changes.values()) < limit


def test_pinned_spaces_change_the_outputs(case: Case) -> None:
    model, graph = traced(case.name)
    trial = Trial(model, case.inputs(1))
    generator = torch.Generator().manual_seed(2)
    quiet = set()
    with inference(trial.model):
        before, _ = trial.baseline()
        for space in graph.spaces:
            if space.free:
                continue
            cycle = cycles(space, graph.spaces, generator)
            after = trial.run(graph.permute(trial.state, {space.index: cycle}))
            if relative_change(before, after) < 1e-6:
                quiet.add(space.name)
    assert quiet == case.soft


def test_number_of_free_spaces(case: Case) -> None:
    if case.free is None:
        pytest.skip("not counted by hand")
    _, graph = traced(case.name)
    free = [space.name for space in graph.spaces if space.free]
    assert len(free) == case.free, free


def test_every_operator_has_a_rule(case: Case) -> None:
    _, graph = traced(case.name)
    assert set(graph.unknown) == case.unknown
