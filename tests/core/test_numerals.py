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


class Standardised(nn.Module):
    """A layer whose code gives every row of its weight mean zero and variance one."""

    def __init__(self, width: int, whole: bool) -> None:
        super().__init__()
        self.stem, self.next = nn.Linear(4, width), nn.Linear(width, width)
        self.head, self.whole = nn.Linear(width, 5), whole

    def forward(self, x):
        x, weight = torch.relu(self.stem(x)), self.next.weight
        if self.whole:
            weight = nn.functional.batch_norm(weight[None], None, None, training=True)[0]
        else:
            weight = weight / weight.std(1, keepdim=True)
        return self.head(torch.relu(nn.functional.linear(x, weight)))


@pytest.mark.parametrize("whole", [True, False])
def test_weights_that_are_normalised_over_other_inputs_are_told(whole: bool) -> None:
    told = []
    for widths in ((6, 9), (6, 6)):
        parents = []
        for seed, width in enumerate(widths):
            torch.manual_seed(seed)
            parents.append(Standardised(width, whole).double().eval())
        batches = [torch.randn(32, 4, dtype=torch.float64)]
        result = hm.merge(parents, batches, match="permute", refit=False, progress=False)
        told.append([note for note in result.report.notes if "its code computes" in note])
    assert [len(notes) for notes in told] == [1, 0]
    assert told[0][0].startswith("models[0]: its code computes with")
    assert " 6 where the merged network's has" in told[0][0]
