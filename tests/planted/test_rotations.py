"""Orthogonal maps with a known exact answer: 1e-8 in float64."""

from __future__ import annotations

import pytest
import torch
from llama_nets import VOCABULARY, llama, rotated, tokens
from torch import Tensor, nn

import hetmerge as hm

EXACT = 1e-8


def outputs(model: nn.Module) -> Tensor:
    """On tokens in an order that calibration has not seen."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        return model(torch.randint(VOCABULARY, (8, 10), generator=generator))


def gap(merged: nn.Module, wanted: Tensor) -> float:
    return float((outputs(merged) - wanted).abs().max() / wanted.abs().max())


CASES = {
    "plain": lambda: llama(1, 2, 12),
    "scale minus one": lambda: llama(2, 2, 12, offset=1.0),
    "groups": lambda: llama(3, 2, 12, heads=4, groups=2),
}


@pytest.mark.parametrize("refit", [True, False])
@pytest.mark.parametrize("width", [12, 17])
@pytest.mark.parametrize("name", CASES)
def test_a_turned_stream_is_found(name: str, width: int, refit: bool) -> None:
    model = CASES[name]()
    other = rotated(model, width)
    assert gap(other, outputs(model)) < EXACT
    merged = hm.merge([model, other], tokens(), match="pca", refit=refit, progress=False)
    assert gap(merged.model, outputs(model)) < EXACT
