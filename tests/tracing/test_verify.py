"""The runtime proof: it passes sound graphs and refuses broken ones."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from zoo import ALL, prepared
from zoo.nets import Perceptron, Shared

from hetmerge.errors import VerifyError
from hetmerge.tracing import SpaceGraph, trace

CASES = {case.name: case for case in ALL}


def traced(name: str) -> tuple[nn.Module, SpaceGraph]:
    model = prepared(CASES[name])
    args, kwargs = CASES[name].inputs(0)
    return model, trace(model, args, kwargs)


def freed(graph: SpaceGraph, name: str) -> SpaceGraph:
    space = graph.space(name)
    spaces = list(graph.spaces)
    spaces[space.index] = replace(space, free=True, pins=())
    return replace(graph, spaces=tuple(spaces))


def test_changes_are_listed_per_space_and_for_all() -> None:
    model, graph = traced("perceptron")
    changes = graph.verify(model)
    assert list(changes) == ["a", "b", "all"]
    assert max(changes.values()) < 1e-12


@pytest.mark.parametrize("name", ["a.in", "c"])
def test_a_wrongly_freed_space_is_named(name: str) -> None:
    model, graph = traced("perceptron")
    with pytest.raises(
        VerifyError, match=rf"space '{name}' changes the outputs by .*tolerance 1e-"
    ):
        freed(graph, name).verify(model)


def test_a_wrong_structure_is_found() -> None:
    model, graph = traced("op_softmax_heads")  # a softmax over the heads, per feature
    heads, inner = graph.space("a:0"), graph.space("a:1")
    assert (heads.structure, inner.structure) == ((inner.index,), ())
    spaces = list(graph.spaces)
    spaces[heads.index] = replace(heads, structure=())
    spaces[inner.index] = replace(inner, structure=(heads.index,))
    with pytest.raises(VerifyError, match="space 'a:1'"):
        replace(graph, spaces=tuple(spaces)).verify(model)


def test_a_missing_occurrence_is_found() -> None:
    model, graph = traced("resnet_conv")
    tensors = {k: v for k, v in graph.tensors.items() if k != "blocks.0.bn1.running_mean"}
    with pytest.raises(VerifyError, match=r"blocks\.0\.conv1"):
        replace(graph, tensors=tensors).verify(model)


def test_tolerance_follows_the_precision_of_the_computation() -> None:
    torch.manual_seed(0)
    model = Perceptron()
    graph = trace(model, torch.randn(2, 20))
    assert 0 < max(graph.verify(model).values()) < 1e-5
    assert max(graph.verify(model.double()).values()) < 1e-12
    with pytest.raises(VerifyError, match="tolerance 1e-30"):
        graph.verify(model.double(), tolerance=1e-30)


def test_half_precision_is_compared_in_a_single_precision_copy() -> None:
    torch.manual_seed(0)
    model = Perceptron().to(torch.bfloat16)
    graph = trace(model, torch.randn(2, 20, dtype=torch.bfloat16))
    assert max(graph.verify(model).values()) < 1e-5
    assert all(p.dtype == torch.bfloat16 for p in model.parameters())


def test_other_inputs_may_be_given() -> None:
    model, graph = traced("perceptron")
    inputs = torch.randn(7, 20, dtype=torch.float64)
    assert max(graph.verify(model, inputs).values()) < 1e-12
    assert max(graph.verify(model, kwargs={"x": inputs}).values()) < 1e-12


def test_a_meta_trace_verifies_a_real_model() -> None:
    case = CASES["gpt2"]
    args, kwargs = case.inputs(0)
    with torch.device("meta"):
        meta = case.build()
    graph = trace(meta, args, kwargs)
    with pytest.raises(VerifyError, match="meta device"):
        graph.verify(meta)
    assert max(graph.verify(prepared(case)).values()) < 1e-9


def test_meta_inputs_cannot_be_run() -> None:
    with torch.device("meta"):
        model = Perceptron()
    graph = trace(model, torch.empty(2, 20, device="meta"))
    with pytest.raises(VerifyError, match="example inputs"):
        graph.verify(Perceptron())


def test_outputs_that_are_not_finite_are_refused() -> None:
    model, graph = traced("perceptron")
    with torch.no_grad():
        model.c.bias[0] = torch.inf
    with pytest.raises(VerifyError, match="not finite"):
        graph.verify(model)


def test_the_model_is_not_touched_even_when_it_fails() -> None:
    torch.manual_seed(0)
    model = Shared().double()
    tensors: dict[str, Tensor] = dict(model.named_parameters(remove_duplicate=False))
    before = {name: tensor.clone() for name, tensor in tensors.items()}
    graph = trace(model, torch.randn(2, 8, 20, dtype=torch.float64))
    graph.verify(model)
    with pytest.raises(VerifyError):
        freed(graph, "head").verify(model)
    after = dict(model.named_parameters(remove_duplicate=False))
    assert all(after[name] is tensors[name] for name in tensors)
    assert all(torch.equal(after[name], before[name]) for name in tensors)
