"""Another order of the features in every head or group: none is shared, and none is needed."""

import copy
from pathlib import Path

import pytest
import torch
from disguise import disguised
from llama_nets import Llama, llama, tokens
from torch import Tensor, nn

import hetmerge as hm

EXACT = 1e-8  # float64, a few hundred roundings of 1e-16
SHAPES = {"heads": (2, 12, 20, 3, 3), "groups": (2, 12, 20, 4, 2)}


def parent(shape: str) -> Llama:
    return llama(3, *SHAPES[shape])


def other(model: nn.Module, seed: int = 4) -> nn.Module:
    return disguised(model, {"ids": tokens()[0]}, seed)


def gap(found: nn.Module, wanted: nn.Module) -> float:
    """On inputs that calibration has not seen."""
    ids = tokens(3)[2]
    a, b = found(ids), wanted(ids)
    return float((a - b).abs().max() / b.abs().max())


def values(plan: hm.AlignmentPlan) -> list[Tensor | None]:
    (labels,) = [s.labels for s in plan.spaces if s.name == "layers.0.attention.v_proj"]
    return labels


@pytest.mark.parametrize("refit", [False, True])
@pytest.mark.parametrize("match", ["permute", "zip", "select"])
@pytest.mark.parametrize("shape", SHAPES)
def test_disguise(shape: str, match: str, refit: bool) -> None:
    model = parent(shape)
    twin = other(model)
    assert gap(twin, model) < EXACT
    merged = hm.merge([model, twin], tokens(), match=match, refit=refit, progress=False)
    units = SHAPES[shape][-1]
    assert [tuple(labels.shape) for labels in values(merged.plan)] == [(units, 4)] * 2
    assert len(values(merged.plan)[1].unique(dim=0)) == units  # every unit has its own order
    assert gap(merged.model, model) < EXACT


@pytest.mark.parametrize("match", ["permute", "zip"])
def test_a_deeper_copy(match: str) -> None:
    model = parent("groups")
    deep = copy.deepcopy(model)
    extra = copy.deepcopy(model.layers[0])
    for weight in (extra.attention.o_proj.weight, extra.down.weight):
        weight.zero_()
    deep.layers.insert(1, extra)
    assert gap(deep, model) < EXACT
    for parents in ([model, other(deep)], [other(deep), model]):
        merged = hm.merge(parents, tokens(), match=match, refit=False, progress=False)
        assert gap(merged.model, model) < EXACT


@pytest.mark.parametrize("shape", SHAPES)
def test_three_parents_in_any_order(shape: str) -> None:
    model = parent(shape)
    parents = [model, other(model, 5), other(model, 6)]
    for turn in range(3):
        turned = parents[turn:] + parents[:turn]
        merged = hm.merge(turned, tokens(), match="permute", refit=False, progress=False)
        assert gap(merged.model, model) < EXACT


@pytest.mark.parametrize("match", ["permute", "zip"])
def test_a_parent_without_weight_has_no_say(match: str) -> None:
    model, silent = parent("heads"), llama(8, 2, 12, 20, 4)
    parents = [model, silent, other(model)]
    merged = hm.merge(
        parents, tokens(), match=match, weights=[1, 0, 1], refit=False, progress=False
    )
    assert gap(merged.model, model) < EXACT


def test_more_heads_than_the_other_parent() -> None:
    """The heads of one parent alone keep their order, whatever happens in those that met."""
    model, wide = parent("heads"), llama(3, 2, 12, 20, 5)
    for mine, theirs in zip(wide.layers, model.layers, strict=True):
        for name in ("q_proj", "k_proj", "v_proj"):
            weight = getattr(theirs.attention, name).weight
            getattr(mine.attention, name).weight[:12] = weight
        mine.attention.o_proj.weight[:, :12] = theirs.attention.o_proj.weight
        mine.attention.o_proj.weight[:, 12:] = 0
    state = model.state_dict()
    wide.load_state_dict(
        {k: v if "attention" in k else state[k] for k, v in wide.state_dict().items()}
    )
    assert gap(wide, model) < EXACT
    merged = hm.merge([model, other(wide)], tokens(), match="permute", refit=False, progress=False)
    assert gap(merged.model, model) < EXACT


def test_a_plan_holds_them(tmp_path: Path) -> None:
    model = parent("groups")
    parents = [model, other(model)]
    plan = hm.plan(parents, tokens(), match="permute", progress=False)
    plan.save(tmp_path)
    found = hm.AlignmentPlan.load(tmp_path)
    for mine, theirs in zip(plan.spaces, found.spaces, strict=True):
        assert mine.outer == theirs.outer
        assert all(torch.equal(a, b) for a, b in zip(mine.labels, theirs.labels, strict=True))
    first, second = (hm.apply(p, parents, tokens(), progress=False).model for p in (plan, found))
    state = second.state_dict()
    assert all(torch.equal(tensor, state[k]) for k, tensor in first.state_dict().items())
    assert gap(first, model) < EXACT


def test_parents_are_not_touched() -> None:
    model = parent("groups")
    parents = [model, other(model)]
    before = [copy.deepcopy(p.state_dict()) for p in parents]
    hm.merge(parents, tokens(), match="permute", progress=False)
    for found, state in zip(parents, before, strict=True):
        assert all(torch.equal(a, state[k]) for k, a in found.state_dict().items())
