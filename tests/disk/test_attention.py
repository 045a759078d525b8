"""Where every family's attention scores come from, and what makes its queries."""

import pytest
import torch
from family_models import GROUPED, OTHERS, inputs
from torch import nn

from hetmerge.network import Network

# Family -> the tensors of one layer that make its queries.
MADE = {
    "llama": ["q_proj.weight"],
    "mistral": ["q_proj.weight"],
    "qwen2": ["q_proj.weight", "q_proj.bias"],
    "qwen3": ["q_norm.weight"],
    "gemma2": ["q_proj.weight"],
    "gemma3": ["q_norm.weight"],
    "phi3": ["qkv_proj.weight"],
    "olmo2": ["q_norm.weight"],
    "starcoder2": ["q_proj.weight", "q_proj.bias"],
    "gpt2": ["c_attn.weight", "c_attn.bias"],
    "gpt-neox": ["query_key_value.weight", "query_key_value.bias"],
    "opt": ["q_proj.weight", "q_proj.bias"],
    "bert": ["query.weight", "query.bias"],
    "roberta": ["query.weight", "query.bias"],
    "distilbert": ["q_lin.weight", "q_lin.bias"],
    "vit": ["q_proj.weight", "q_proj.bias"],
    "dinov2": ["q_proj.weight", "q_proj.bias"],
    "clip": ["q_proj.weight", "q_proj.bias"],
}
SCALAR = {"gemma2": 256, "gemma3": 256}  # families whose configuration gives the scale


def model_of(family: str) -> nn.Module:
    torch.manual_seed(0)
    return {**GROUPED, **OTHERS}[family](2, 32, 4, 2).eval()


@pytest.mark.parametrize("family", MADE)
def test_attention_of_every_family(family: str) -> None:
    network = Network(model_of(family), ((), inputs(family)[0]))
    assert len(network.attentions) == 2
    for attention in network.attentions.values():
        assert attention.size == 8
        assert attention.scale == pytest.approx(SCALAR.get(family, 8) ** -0.5, rel=1e-6)
        names = [q.tensor for q in attention.made]
        assert [name.split(".")[-2] + "." + name.split(".")[-1] for name in names] == MADE[family]


@pytest.mark.parametrize("family", MADE)
def test_scores_follow_what_makes_the_queries(family: str) -> None:
    """Scaling the queries' tensors by c multiplies them by c, and nothing else of the layer."""
    model = model_of(family)
    batch = inputs(family)[0]
    network = Network(model, ((), batch))
    (first, *_) = network.attentions.values()
    before = network.walk([((), batch)])
    product = before.graph[first.node]
    wanted = [before.value(a.name)[0] for a in product.all_input_nodes[:2]]
    for q in first.made:
        tensor = network.state[q.tensor]
        shape = [1] * tensor.dim()
        shape[q.dim] = -1
        scale = torch.where(q.used, 3.0, 1.0).reshape(shape)
        network.state.put(q.tensor, (tensor + q.offset) * scale - q.offset)
    after = network.walk([((), batch)])
    found = [after.value(a.name)[0] for a in product.all_input_nodes[:2]]
    assert torch.allclose(found[0], 3 * wanted[0], rtol=1e-4, atol=1e-6)
    assert torch.equal(found[1], wanted[1])
