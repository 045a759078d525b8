"""Numbers in a model's code that follow from its sizes are told where they become others."""

import math

import pytest
import torch
from torch import nn

import hetmerge as hm

WIDTH = 6


class Net(nn.Module):
    """Branches that are scaled by the number of units, and attention by its size."""

    def __init__(self, depth: int, scaled: bool) -> None:
        super().__init__()
        self.share = 1 / math.sqrt(depth) if scaled else 0.5
        self.stem = nn.Linear(4, WIDTH)
        self.units = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(depth))
        self.head = nn.Linear(WIDTH, 5)

    def forward(self, x):
        x = self.stem(x)
        for unit in self.units:
            x = x + self.share * unit(torch.tanh(x))
        return self.head(x)


def notes(scaled: bool) -> list[str]:
    parents = []
    for depth in (4, 2):
        torch.manual_seed(depth)
        parents.append(Net(depth, scaled).double().eval())
    batches = [torch.randn(32, 4, dtype=torch.float64)]
    result = hm.merge(parents, batches, match="permute", refit=False, progress=False)
    return [note for note in result.report.notes if "its code computes" in note]


def test_a_share_of_the_depth_is_told() -> None:
    (note,) = notes(scaled=True)
    assert note.startswith(
        "models[1]: its code computes with 0.7071 where the merged network's has 0.5, in "
    )
    assert note.endswith("follow from sizes, so the merge is not exact there")
    assert notes(scaled=False) == []


def test_scales_of_attention_are_not_told() -> None:
    """They are made up for."""
    tf = pytest.importorskip("transformers")
    parents = []
    for size, layers in ((8, 2), (16, 1)):
        config = tf.LlamaConfig(
            hidden_size=16,
            intermediate_size=16,
            num_hidden_layers=layers,
            num_attention_heads=2,
            num_key_value_heads=2,
            head_dim=size,
            vocab_size=31,
            attn_implementation="eager",
        )
        parents.append(tf.LlamaForCausalLM(config).eval())
    batches = [{"input_ids": torch.randint(0, 31, (8, 8))}]
    result = hm.merge(parents, batches, match="permute", refit=False, progress=False)
    assert not any("its code computes" in note for note in result.report.notes)
