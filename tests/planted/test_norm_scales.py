"""Norms over more features than a parent has: zeros that another one adds change nothing."""

import itertools
from pathlib import Path

import llama_nets
import pytest
import torch
from llama_nets import Llama, llama, tokens
from test_head_sizes import larger_heads
from torch import Tensor, nn

import hetmerge as hm

EXACT = 1e-8


@pytest.fixture(autouse=True)
def _no_floor(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a norm adds to the mean square is not a mean over features."""
    monkeypatch.setattr(llama_nets, "EPS", 1e-15)


def wider(model: Llama, width: int) -> Llama:
    """The same function with a wider residual stream, whose new features are zero."""
    first, old = model.layers[0], model.embed.weight.shape[1]
    heads, groups = (
        x.weight.shape[0] // first.attention.size
        for x in (first.attention.q_proj, first.attention.k_proj)
    )
    sizes = (len(model.layers), width, len(first.gate.weight), heads, groups)
    offset = model.norm.offset
    found = llama(0, *sizes, size=first.attention.size, offset=offset)
    state = dict(model.state_dict())
    for name, tensor in state.items():
        if "norm" in name:
            state[name] = padded((tensor + offset) * (old / width) ** 0.5, 0, width) - offset
        elif name.endswith(("o_proj.weight", "down.weight")):
            state[name] = padded(tensor, 0, width)
        else:
            state[name] = padded(tensor, 1, width)
    found.load_state_dict(state)
    return found


def padded(tensor: Tensor, dim: int, size: int) -> Tensor:
    shape = list(tensor.shape)
    shape[dim] = size - shape[dim]
    return torch.cat([tensor, tensor.new_zeros(shape)], dim)


def check(parents: list[Llama], match: str) -> hm.MergeResult:
    ids = tokens()[0]
    wanted = parents[0](ids)
    assert (parents[1](ids) - wanted).abs().max() < EXACT
    result = hm.merge(parents, tokens(), match=match, refit=False, progress=False)
    assert (result.model(ids) - wanted).abs().max() < EXACT
    return result


@pytest.mark.parametrize("match", ["permute", "zip"])
@pytest.mark.parametrize("offset", [0.0, 1.0])
def test_a_wider_stream(match: str, offset: float) -> None:
    small = llama(3, 2, 12, 20, 4, 2, offset=offset)
    parents = [wider(small, 18), small][:: 1 if offset else -1]
    assert check(parents, match).model.embed.weight.shape == (llama_nets.VOCABULARY, 18)


@pytest.mark.parametrize(
    ("normed", "first"), list(itertools.product(["head", "unit", "whole"], [0, 1]))
)
def test_larger_heads_behind_norms(normed: str, first: int) -> None:
    small = llama(3, 2, 12, 20, 4, 2, normed=normed)
    large = larger_heads(small, 8)
    result = check([large, small][:: 1 - 2 * first], "permute")
    assert result.model.layers[0].attention.size == 8


def test_a_parent_with_all_features_stays_as_it_is(tmp_path: Path) -> None:
    wide, narrow = llama(1, 2, 18, 20, 4, 2), llama(2, 2, 12, 20, 4, 2)
    plan = hm.plan([narrow, wide], tokens(), match="permute", progress=False)
    assert {factors[1] for factors in plan.norm_scales.values()} == {1.0}
    behind = {name.rpartition(".")[0].rpartition(".")[2] for name in plan.norm_scales}
    assert behind == {"q_proj", "k_proj", "v_proj", "gate", "up", "head"}
    found = {factors[0] for factors in plan.norm_scales.values()}
    assert len(found) == 5  # one per norm
    assert all(0.5 < factor < 2 and factor != 1 for factor in found)
    plan.save(tmp_path / "plan")
    assert hm.AlignmentPlan.load(tmp_path / "plan").norm_scales == plan.norm_scales


def test_equal_sizes_need_nothing() -> None:
    parents = [llama(seed, 2, 12, 20, 4, 2, normed="head") for seed in (1, 2)]
    assert hm.plan(parents, tokens(), match="zip", progress=False).norm_scales == {}


def test_a_norm_that_nothing_can_make_up_for_is_named() -> None:
    parents = [llama(n, 2, 12, 20, 4, 2, size=4 * n, normed="bare") for n in (1, 2)]
    plan = hm.plan(parents, tokens(), match="permute", progress=False)
    found = [note for note in plan.notes if note.startswith("the norm in ")]
    assert len(found) == 1  # of queries and of keys, in both layers
    assert found[0].startswith("the norm in layers.0.attention (and 1 more)")
    assert not any("attention" in name for name in plan.norm_scales)


class ValueNorm(nn.Module):
    """Attention whose values are normalised head by head, without a scale."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(12)
        self.q, self.k, self.v = (nn.Linear(12, 3 * size) for _ in range(3))
        self.o = nn.Linear(3 * size, 12)

    def forward(self, x):
        layers = (self.q, self.k, self.v)
        q, k, v = (layer(self.norm(x)).unflatten(-1, (3, -1)).transpose(1, 2) for layer in layers)
        v = nn.functional.rms_norm(v, v.shape[-1:])
        read = nn.functional.scaled_dot_product_attention(q, k, v, scale=1.0)
        return x + self.o(read.transpose(1, 2).flatten(2))


class ValueNorms(nn.Module):
    def __init__(self, size: int) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(5, 12), nn.Linear(12, 4)
        self.blocks = nn.Sequential(ValueNorm(size), ValueNorm(size))

    def forward(self, x):
        return self.head(self.blocks(self.stem(x)))


def test_a_norm_without_a_scale_over_features_in_an_order_of_each_head() -> None:
    parents = []
    for size in (4, 6):
        torch.manual_seed(size)
        parents.append(ValueNorms(size).double().eval())
    batches = [torch.randn(8, 7, 5, dtype=torch.float64) for _ in range(3)]
    plan = hm.plan(parents, batches, match="zip", progress=False)
    assert plan.norm_scales == {}
    assert sum("no weight can make up for it" in note for note in plan.notes) == 1
