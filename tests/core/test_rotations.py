"""Scales that can be folded, and spaces that can be turned."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from hetmerge.network import Network

sys.path.insert(0, str(Path(__file__).parents[1] / "planted"))

from llama_nets import Llama, Norm, llama, tokens  # noqa: E402

EXACT = 1e-12


def traced(model: nn.Module, fold: bool = True) -> Network:
    return Network(model, ((tokens(1)[0],), {}), fold=fold)


def stream(network: Network) -> int:
    return network.graph.tensors["embed.weight"][1].space  # type: ignore[union-attr]


class Fused(nn.RMSNorm):
    """torch's own operation."""


class Mean(nn.Module):
    """A norm that takes the mean away: not the same in another basis."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        x = x - x.mean(-1, keepdim=True)
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * self.weight


def swap(model: Llama, make: Callable[[int], nn.Module]) -> Llama:
    """The model with other norms everywhere."""
    for path, module in list(model.named_modules()):
        if isinstance(module, Norm):
            norm = make(len(module.weight)).double()
            norm.weight.data.copy_(module.weight)
            model.set_submodule(path, norm.requires_grad_(False))
    return model


@pytest.mark.parametrize("offset", [0.0, 1.0])
def test_folding_keeps_the_function(offset: float) -> None:
    model = llama(1, 2, 12, offset=offset)
    network = traced(model)
    assert len(network.gains) == 5
    assert {gain.offset for gain in network.gains} == {offset}
    assert all(bool((network.state[g.tensor] == 1 - offset).all()) for g in network.gains)
    ids = tokens(1)[0]
    assert float((network.model(ids) - model(ids)).abs().max()) < EXACT
    assert len(network.rotations[stream(network)].norms) == 5


def test_fused_norms() -> None:
    model = swap(llama(1, 2, 12), lambda width: Fused(width, eps=1e-6))
    network = traced(model)
    assert len(network.gains) == 5
    ids = tokens(1)[0]
    assert float((network.model(ids) - model(ids)).abs().max()) < EXACT
    assert len(network.rotations[stream(network)].norms) == 5


def test_scales_stand_in_the_way_until_they_are_folded() -> None:
    assert stream(network := traced(llama(1, 1, 12), fold=False)) not in network.rotations


def test_tied_heads_keep_their_basis() -> None:
    model = llama(1, 1, 12)
    model.head.weight = model.embed.weight
    network = traced(model)
    assert [gain.tensor for gain in network.gains] == [
        "layers.0.norm1.weight",
        "layers.0.norm2.weight",
    ]
    assert stream(network) not in network.rotations
    model.norm.weight.fill_(1.0)  # nothing to fold: the head reads the stream as it is
    network = traced(model)
    assert stream(network) not in network.rotations


def _clipped(model: Llama) -> nn.Module:
    forward = model.layers[0].forward
    model.layers[0].forward = lambda x: forward(x.clamp(-2, 2))  # type: ignore[method-assign]
    return model


def _gated(model: Llama) -> nn.Module:
    forward = model.layers[0].forward
    model.layers[0].forward = lambda x: forward(x) * x.sigmoid()  # type: ignore[method-assign]
    return model


def _shifted(model: Llama) -> nn.Module:
    forward = model.layers[0].forward
    model.layers[0].forward = lambda x: forward(x) + 0.5  # type: ignore[method-assign]
    return model


def _added_norm(model: Llama) -> nn.Module:
    """A norm whose output goes back into the stream."""
    block = model.layers[0]
    forward = block.forward
    block.forward = lambda x: x + block.norm1(forward(x))  # type: ignore[method-assign]
    return model


BASES = {
    "mean taken away": lambda: swap(llama(1, 1, 12), Mean),
    "clipped": lambda: _clipped(llama(1, 1, 12)),
    "gated by itself": lambda: _gated(llama(1, 1, 12)),
    "shifted": lambda: _shifted(llama(1, 1, 12)),
    "norm into the stream": lambda: _added_norm(llama(1, 1, 12)),
}


@pytest.mark.parametrize("name", BASES)
def test_what_depends_on_the_basis_is_seen(name: str) -> None:
    network = traced(BASES[name]())
    assert stream(network) not in network.rotations


class Residual(nn.Module):
    """Without norms; every layer reads the stream as it is."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.stem = nn.Linear(5, width)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(width, 9), nn.GELU(), nn.Linear(9, width)) for _ in range(2)
        )
        self.head = nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = x + block(x)
        return self.head(x)


def test_a_stream_without_norms() -> None:
    torch.manual_seed(0)
    network = Network(Residual(7).double(), ((torch.randn(4, 5).double(),), {}))
    space = network.graph.tensors["head.weight"][1].space  # type: ignore[union-attr]
    assert network.rotations[space].norms == ()
    assert list(network.rotations) == [space]  # GELU's units have a basis


def test_the_original_is_left_alone() -> None:
    model = llama(1, 1, 12)
    before = copy.deepcopy(model.state_dict())
    traced(model)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
