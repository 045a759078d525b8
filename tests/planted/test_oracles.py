"""Merges whose exact answer is known without running anything else: 1e-8 in float64."""

from __future__ import annotations

import copy
import itertools
import math

import pytest
import torch
from planted_nets import PAIRS, images, randomised
from torch import Tensor, nn

import hetmerge as hm
import hetmerge.network
import hetmerge.tracing.expr
from hetmerge.resizing import resize, set_tensors

EXACT = 1e-8
NAMES = list(PAIRS)


def outputs(model: nn.Module) -> Tensor:
    """On images that calibration has not seen."""
    fresh = torch.randn(
        16, 3, 12, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(1)
    )
    with torch.no_grad():
        return model(fresh)


def gap(merged: nn.Module, wanted: Tensor) -> float:
    return float((outputs(merged) - wanted).abs().max() / wanted.abs().max())


@pytest.mark.parametrize("name", NAMES)
def test_union_is_the_ensemble(name: str) -> None:
    a, b = PAIRS[name]()
    merged = hm.merge([a, b], images(), width="union", weights=[3, 1], match="zip")
    assert merged.report.exact == (name != "grouped")  # GroupNorm mixes features: refit runs too
    wanted = 0.75 * outputs(a) + 0.25 * outputs(b)
    assert gap(merged.model, wanted) < EXACT


@pytest.mark.parametrize("name", NAMES)
def test_union_with_concatenated_outputs(name: str) -> None:
    a, b = PAIRS[name]()
    merged = hm.merge([b, a], images(), width="union", outputs="concat", refit=False, match="zip")
    assert gap(merged.model, torch.cat([outputs(b), outputs(a)], 1)) < EXACT


@pytest.mark.parametrize("refit", [True, False])
@pytest.mark.parametrize("match", ["zip", "permute", "select"])
@pytest.mark.parametrize("name", NAMES)
def test_weight_one_returns_that_parent(name: str, match: str, refit: bool) -> None:
    a, b = PAIRS[name]()
    for weights, parent in (([1, 0], a), ([0, 1], b)):
        merged = hm.merge([a, b], images(), match=match, weights=weights, refit=refit)
        assert gap(merged.model, outputs(parent)) < EXACT


@pytest.mark.parametrize("name", ["resnet-conv", "vgg"])
def test_auto_is_exact_where_a_candidate_is(name: str) -> None:
    a, b = PAIRS[name]()
    one = hm.merge([a, b], images(), match="auto", weights=[0, 1])
    assert gap(one.model, outputs(b)) < EXACT
    twice = hm.merge([a, disguise(a)], images(), match="auto")
    assert gap(twice.model, outputs(a)) < EXACT
    assert max(twice.plan.trials.values()) == 1


@pytest.mark.parametrize("match", ["zip", "permute", "select", "identity"])
@pytest.mark.parametrize("name", NAMES)
def test_self_merge(name: str, match: str) -> None:
    a, _ = PAIRS[name]()
    merged = hm.merge([a, copy.deepcopy(a)], images(), match=match)
    assert gap(merged.model, outputs(a)) < EXACT
    assert merged.report.merged_parameters == merged.report.parameters[0] + _shortcuts(merged)


@pytest.mark.parametrize("refit", [True, False])
@pytest.mark.parametrize("match", ["zip", "permute", "select"])
@pytest.mark.parametrize("name", NAMES)
def test_disguise(name: str, match: str, refit: bool) -> None:
    """A network merged with itself under random orders of all its free spaces."""
    a, _ = PAIRS[name]()
    disguised = disguise(a)
    assert gap(disguised, outputs(a)) < EXACT
    merged = hm.merge([a, disguised], images(), match=match, refit=refit)
    assert gap(merged.model, outputs(a)) < EXACT


def test_disguise_is_not_found_by_position() -> None:
    """The control of the test above: without matching the function is lost."""
    a, _ = PAIRS["resnet-conv"]()
    merged = hm.merge([a, disguise(a)], images(), match="identity", refit=False)
    assert gap(merged.model, outputs(a)) > 0.1


@pytest.mark.parametrize("name", ["resnet-conv", "resnet-pad", "vgg"])
def test_planted_width(name: str) -> None:
    """Duplicated units fold back: to the widened width, and with alpha 1 to the original one."""
    a, _ = PAIRS[name]()
    wide = widen(a)
    assert gap(wide, outputs(a)) < EXACT
    merged = hm.merge([a, wide], images(), match="zip")
    assert gap(merged.model, outputs(a)) < EXACT
    folded = hm.merge([a, wide], images(), match="zip", alpha=1.0, width=0.5)
    assert gap(folded.model, outputs(a)) < EXACT
    original = hm.merge([a], images(), match="zip")
    assert folded.report.merged_parameters == original.report.merged_parameters


@pytest.mark.parametrize("disguised", [False, True])
@pytest.mark.parametrize("depth", ["segment", "layer"])
@pytest.mark.parametrize("places", [[0], [1], [0, 1], [2, 2]])
def test_planted_depth_residual(depth: str, places: list[int], disguised: bool) -> None:
    """Blocks that add nothing are inserted; alignment finds where the real ones went."""
    a, _ = PAIRS["resnet-conv"]()
    deep = copy.deepcopy(a)
    stage = list(deep.stages[0].children())
    kept = list(range(len(stage)))
    for place in sorted(places, reverse=True):
        block = randomised(copy.deepcopy(stage[place]), 11)
        block.bn2.weight.data.zero_()
        block.bn2.bias.data.zero_()
        stage.insert(place + 1, block)
        kept = [k + (k > place) for k in kept]
    deep.stages[0] = nn.Sequential(*stage)
    deep = disguise(deep) if disguised else deep
    assert gap(deep, outputs(a)) < EXACT
    merged = hm.merge([a, deep], images(), depth=depth, match="permute")
    assert merged.plan.segments["stages.0"] == kept
    assert gap(merged.model, outputs(a)) < EXACT


@pytest.mark.parametrize("depth", ["segment", "layer"])
def test_planted_depth_plain(depth: str) -> None:
    """Identity layers inside a plain network."""
    a, _ = PAIRS["vgg"]()
    deep = copy.deepcopy(a)
    layers = list(deep[0].children())
    identity = nn.Conv2d(8, 8, 3, padding=1).double()
    nn.init.dirac_(identity.weight)
    nn.init.zeros_(identity.bias)
    norm = nn.BatchNorm2d(8, eps=0.0).double().eval()
    deep[0] = nn.Sequential(*layers[:3], identity, norm, nn.ReLU(), *layers[3:])
    assert gap(deep, outputs(a)) < EXACT
    for match in ("zip", "permute"):
        merged = hm.merge([a, deep], images(), depth=depth, match=match)
        assert merged.plan.segments["0[0]"] == [0, 2, 3]
        assert gap(merged.model, outputs(a)) < EXACT


def test_three_parents_and_their_order() -> None:
    a, b = PAIRS["resnet-conv"]()
    c, _ = PAIRS["resnet-mixed-depth"]()
    parents = {"a": a, "b": b, "c": c}
    wanted = sum(outputs(p) for p in parents.values()) / 3
    for order in itertools.permutations(parents):
        merged = hm.merge([parents[k] for k in order], images(), width="union", match="zip")
        assert gap(merged.model, wanted) < EXACT
    disguises = [a, disguise(a, 1), disguise(a, 2)]
    for match in ("zip", "permute"):
        # Zip's default alpha halves the similarity of a pair to its third copy: below other pairs.
        merged = hm.merge(disguises, images(), match=match, alpha=1.0)
        assert gap(merged.model, outputs(a)) < EXACT


def _shortcuts(merged: hm.MergeResult) -> int:
    """Parameters of shortcuts that had none."""
    model = merged.model
    return sum(model.get_submodule(path).weight.numel() for path in merged.report.replaced)


def disguise(model: nn.Module, seed: int = 0) -> nn.Module:
    """The same function with every free space in another random order, in every group anew."""
    model = copy.deepcopy(model)
    graph = hm.trace(model, images(1)[0])
    generator = torch.Generator().manual_seed(seed)
    orders = {}
    for space in graph.spaces:
        if space.free:
            outer = [graph.spaces[k].size for k in space.structure]
            rows = [
                torch.randperm(space.size, generator=generator) for _ in range(math.prod(outer))
            ]
            orders[space.index] = torch.stack(rows).reshape(*outer, space.size)
    model.load_state_dict(graph.permute(dict(model.state_dict()), orders))
    return model


def widen(model: nn.Module) -> nn.Module:
    """Every free unit twice, each of its outgoing weights halved."""
    network = hm.network.Network(model, ((images(1)[0],), {}), fold=False)
    graph, state = network.graph, {}
    for name, exprs in graph.tensors.items():
        tensor = network.state[name]
        for dim, expr in enumerate(exprs):
            twice = [leaf for leaf in hm.tracing.expr.leaves(expr) if graph.spaces[leaf.space].free]
            if twice:
                index = _doubled(expr, graph)
                tensor = tensor.index_select(dim, index)
                tensor = tensor / 2 if (name, dim) in graph.consumed else tensor
        state[name] = tensor
    wide = copy.deepcopy(network.model)
    set_tensors(wide, state)
    resize(wide, {})
    return wide


def _doubled(expr: object, graph: hm.SpaceGraph) -> Tensor:
    parts = expr.parts if hasattr(expr, "parts") else (expr,)
    index = torch.zeros(1, dtype=torch.int64)
    for part in parts:
        mine = torch.arange(part.size)
        if graph.spaces[part.space].free:
            mine = mine.repeat(2)
        index = (index[:, None] * part.size + mine).flatten()
    return index
