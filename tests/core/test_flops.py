"""Work of a forward pass, by hand; the same on every device."""

import pytest
import torch
from torch import nn

from hetmerge.flops import flops_of
from hetmerge.tracing import export
from hetmerge.tracing.portable import grouped_mm, histc


class Attention(nn.Module):
    def forward(self, x):
        return nn.functional.scaled_dot_product_attention(x, x, x)


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_attention_is_counted(device) -> None:
    """Two products of [7, 7] scores with 4 features, in 3 heads."""
    call = ((torch.zeros(2, 3, 7, 4, device=device),), {})
    anchor = nn.Linear(1, 1).to(device)
    model = nn.ModuleList([Attention(), anchor])[0]
    model.anchor = anchor
    assert flops_of(export(model, *call), call) == 2 * 2 * 3 * 7 * 7 * 4


def test_what_is_left_out() -> None:
    model, call = nn.Sequential(nn.Linear(3, 5), nn.Linear(5, 7)), ((torch.zeros(2, 3),), {})
    program = export(model, *call)
    assert flops_of(program, call) == 2 * (15 + 35)
    assert flops_of(program, call, ["1"]) == 2 * 15


def test_experts_are_counted_once_per_token_they_see() -> None:
    tf = pytest.importorskip("transformers")
    sizes = {"hidden_size": 8, "intermediate_size": 16, "num_local_experts": 4}
    config = tf.MixtralConfig(**sizes, num_experts_per_tok=2, num_hidden_layers=1)
    config._experts_implementation = "grouped_mm"
    block = tf.models.mixtral.modeling_mixtral.MixtralSparseMoeBlock(config).eval()
    call = ((torch.zeros(2, 5, 8),), {})
    router, expert = 2 * 5 * 8 * 4, 2 * 5 * 2 * (8 * 32 + 16 * 8)
    assert flops_of(export(block, *call), call) == router + expert


def test_products_of_experts_with_groups_that_are_empty() -> None:
    torch.manual_seed(0)
    x, weight = torch.randn(7, 3).double(), torch.randn(4, 3, 5).double()
    ends = torch.tensor([0, 4, 4, 6])
    owner = torch.tensor([1, 1, 1, 1, 3, 3])
    found = grouped_mm(x, weight, ends)
    assert torch.allclose(found[:6], torch.einsum("ri,rio->ro", x[:6], weight[owner]))
    assert not found[6].any()


def test_whole_numbers_are_counted() -> None:
    values = torch.tensor([0, 3, 3, 1], dtype=torch.int32)
    assert histc(values, 4, 0, 3).tolist() == [1, 1, 0, 2]
