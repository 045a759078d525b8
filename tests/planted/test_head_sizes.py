"""Heads of different size: rotary frequencies meet by what they are, scores keep their scale."""

import copy

import pytest
import torch
from llama_nets import Attention, Llama, llama, tokens
from torch import Tensor

import hetmerge as hm
from hetmerge import fixed_order


def larger_heads(model: Llama, size: int) -> Llama:
    """The same function in heads of another size: new frequencies and values are zero."""
    first = model.layers[0]
    old = first.attention.size
    heads, groups = (
        x.weight.shape[0] // old for x in (first.attention.q_proj, first.attention.k_proj)
    )
    sizes = (len(model.layers), model.embed.weight.shape[1], len(first.gate.weight), heads, groups)
    normed = first.attention.normed
    found = llama(0, *sizes, size=size, normed=normed)
    state = copy.deepcopy(model.state_dict())
    step = size // old
    turned = torch.cat([torch.arange(old // 2) * step + part * size // 2 for part in (0, 1)])
    for name, tensor in state.items():
        if "q_proj" in name:
            state[name] = spread(tensor, old, size, turned) * step**0.5
        elif "k_proj" in name:
            state[name] = spread(tensor, old, size, turned)
        elif "v_proj" in name:
            state[name] = spread(tensor, old, size, torch.arange(old))
        elif "o_proj" in name:
            state[name] = spread(tensor.T, old, size, torch.arange(old)).T
        elif "q_norm" in name or "k_norm" in name:
            queries, sums = "q_norm" in name, normed == "unit"
            # A mean over more features is smaller, and so are scores that a larger head divides.
            loud = step ** (0.5 * (queries - 1 + sums))
            state[name] = spread(tensor[:, None], old, size, turned)[:, 0] * loud
    found.load_state_dict(state)
    return found


def spread(rows: Tensor, old: int, size: int, places: Tensor) -> Tensor:
    heads = rows.reshape(-1, old, rows.shape[1])
    wide = heads.new_zeros(len(heads), size, rows.shape[1])
    wide[:, places] = heads
    return wide.flatten(0, 1)


@pytest.mark.parametrize("groups", [4, 2])
@pytest.mark.parametrize("match", ["permute", "zip"])
@pytest.mark.parametrize("first", [0, 1])
def test_larger_heads_of_the_same_function(groups: int, match: str, first: int) -> None:
    small = llama(3, 2, 12, 20, 4, groups)
    large = larger_heads(small, 8)
    ids = tokens()[0]
    assert (large(ids) - small(ids)).abs().max() < 1e-12
    parents = [large, small][:: 1 - 2 * first]
    merged = hm.merge(parents, tokens(), match=match, refit=False, progress=False).model
    attention = merged.get_submodule("layers.0.attention")
    assert isinstance(attention, Attention)
    assert attention.size == 8
    assert (merged(ids) - small(ids)).abs().max() < 1e-8


def test_refit_keeps_the_function() -> None:
    small = llama(3, 2, 12, 20, 4, 2)
    parents = [larger_heads(small, 8), small]
    batches = tokens(count=40)
    merged = hm.merge(parents, batches, match="permute", progress=False).model
    assert (merged(batches[0]) - small(batches[0])).abs().max() < 1e-6


def test_other_frequencies_are_left_out() -> None:
    small = llama(3, 2, 12, 20, 4, 2)
    large = larger_heads(small, 8)
    for layer in small.layers:
        angles = torch.arange(16)[:, None] * torch.tensor([1.0, 0.9, 1.0, 0.9])
        layer.attention.cos.copy_(angles.cos())
        layer.attention.sin.copy_(angles.sin())
    plan = hm.plan([large, small], tokens(), progress=False, match="zip")
    (labels,) = [s.labels for s in plan.spaces if s.name == "layers.1.attention.q_proj:2"]
    assert labels[0].tolist() == [0, 1, 2, 3]
    assert labels[1].tolist() == [0, -1]
    assert [n for n in plan.notes if n.startswith("models[1]: 1 of 2 features that rotary")]


def test_a_repeated_unit_keeps_its_scores() -> None:
    small = llama(3, 2, 12, 20, 4)
    for layer in small.layers:
        for end in (layer.attention.o_proj, layer.down):
            end.weight.data.mul_(0.3)  # a second run sees about what the first one saw
    large = larger_heads(small, 8)
    large.layers.append(copy.deepcopy(large.layers[-1]))
    options = {"match": "permute", "depth": "head", "refit": False, "progress": False}
    merged = hm.merge([large, small], tokens(), missing="repeat", **options).model
    ids = tokens()[0]
    assert (merged(ids) - large(ids)).abs().max() < 1e-8


def test_layers_that_meet_the_same_constants_are_paired_once(monkeypatch) -> None:
    found: list[int] = []
    pair = fixed_order.by_constants
    monkeypatch.setattr(fixed_order, "by_constants", lambda *a: (found.append(1), pair(*a))[1])
    counts = []
    for depth in (2, 5):
        small = llama(3, depth, 12, 20, 4, 2)
        plan = hm.plan([larger_heads(small, 8), small], tokens(), progress=False, match="zip")
        assert sum(space.name.endswith("q_proj:2") for space in plan.spaces) == depth
        counts.append(len(found))
        found.clear()
    assert counts[0] == counts[1] > 0
