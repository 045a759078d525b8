"""Merges of transformers with disguised, widened and deepened copies of themselves."""

import copy
import sys
from pathlib import Path

import pytest
import torch
from disguise import disguised
from torch import nn

import hetmerge as hm

sys.path.insert(0, str(Path(__file__).parents[1] / "merging"))
tf = pytest.importorskip("transformers")
from families import pretrained as hf  # noqa: E402

# RMSNorm and rotary embeddings of transformers compute in single precision, whatever the weights.
TOLERANCE = {"llama": 3e-5, "qwen2": 3e-5, "gpt2": 1e-8, "bert": 1e-8}


SMALL = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "intermediate_size": 48,
    "vocab_size": 31,
    "max_position_embeddings": 32,
}


def qwen2() -> nn.Module:
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    return tf.Qwen2ForCausalLM(tf.Qwen2Config(**SMALL, **heads))


MODELS = {
    "llama": lambda: hf.llama(2, 32),
    "qwen2": qwen2,
    "gpt2": lambda: hf.gpt2(2, 16),
    "bert": lambda: hf.bert(2, 16),
}
# Per family: container of the layers, what a layer adds to the stream, the MLP's first and last.
PARTS = {
    "llama": ("model.layers", ("self_attn.o_proj", "mlp.down_proj"), ("up_proj", "gate_proj")),
    "qwen2": ("model.layers", ("self_attn.o_proj", "mlp.down_proj"), ("up_proj", "gate_proj")),
    "gpt2": ("transformer.h", ("attn.c_proj", "mlp.c_proj"), ("c_fc",)),
}


def original(family: str) -> nn.Module:
    return hf.lively(MODELS[family](), 3).double()


def batches() -> list[dict[str, torch.Tensor]]:
    return [{"input_ids": batch["input_ids"]} for batch in hf.tokens()]


def deepened(model: nn.Module, family: str) -> nn.Module:
    """One more layer, whose branches are zero."""
    path, ends, _ = PARTS[family]
    other = copy.deepcopy(model)
    layers = other.get_submodule(path)
    extra = copy.deepcopy(layers[0])
    for end in ends:
        for parameter in extra.get_submodule(end).parameters():
            parameter.data.zero_()
    layers.insert(1, extra)
    for i, layer in enumerate(layers):
        for module in layer.modules():
            if hasattr(module, "layer_idx"):
                module.layer_idx = i
    name = "n_layer" if family == "gpt2" else "num_hidden_layers"
    setattr(other.config, name, len(layers))
    if getattr(other.config, "layer_types", None):
        other.config.layer_types = [other.config.layer_types[0]] * len(layers)
    return other.eval()


def widened(model: nn.Module, family: str) -> nn.Module:
    """Every unit of the MLPs twice, each with half of what it adds."""
    config = copy.deepcopy(model.config)
    if family == "gpt2":
        config.n_inner = 8 * config.n_embd
    else:
        config.intermediate_size *= 2
    other = type(model)(config).double().eval()
    state = {}
    for name, tensor in model.state_dict().items():
        bert = "intermediate" in name or (".output.dense" in name and "attention" not in name)
        if "mlp" in name or bert:
            rows, halves = _doubled(name, family)
            tensor = torch.cat([tensor] * 2, rows) if rows is not None else tensor
            tensor = torch.cat([tensor / 2] * 2, halves) if halves is not None else tensor
        state[name] = tensor
    other.load_state_dict(state)
    return other


def _doubled(name: str, family: str) -> tuple[int | None, int | None]:
    """(dimension that is repeated, dimension that is repeated and halved) of a tensor of an MLP."""
    if family == "gpt2":  # [in, out]
        first = "c_fc" in name
        if name.endswith("bias"):
            return (0, None) if first else (None, None)
        return (1, None) if first else (None, 0)
    first = any(part in name for part in ("up_proj", "gate_proj", "intermediate"))
    if name.endswith("bias"):
        return (0, None) if first else (None, None)
    return (0, None) if first else (None, 1)


def difference(merged: nn.Module, model: nn.Module) -> float:
    with torch.no_grad():
        found, wanted = (m(**batches()[0]).logits for m in (merged, model))
    return float((found - wanted).abs().max() / wanted.abs().max())


@pytest.mark.parametrize("family", MODELS)
@pytest.mark.parametrize("match", ["permute", "zip"])
def test_disguise(family: str, match: str) -> None:
    model = original(family)
    other = disguised(model, batches()[0])
    assert difference(other, model) < TOLERANCE[family]
    result = hm.merge([model, other], batches(), match=match, refit=False, progress=False)
    assert difference(result.model, model) < TOLERANCE[family]


LAYOUTS = {
    # queries, keys and values side by side in every head
    "neox": lambda: tf.GPTNeoXForCausalLM(
        tf.GPTNeoXConfig(**SMALL, num_attention_heads=2, rotary_pct=0.25)
    ),
    # heads that constants tell apart: what is inside them is free
    "bloom": lambda: tf.BloomForCausalLM(
        tf.BloomConfig(hidden_size=16, n_layer=2, n_head=2, vocab_size=31)
    ),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_disguise_of_fused_layers(layout: str) -> None:
    model = hf.lively(LAYOUTS[layout](), 3).double()
    other = disguised(model, batches()[0])
    assert difference(other, model) < 1e-8
    result = hm.merge([model, other], batches(), match="permute", refit=False, progress=False)
    assert difference(result.model, model) < 1e-8


COPIES = [(deepened, family) for family in PARTS] + [(widened, family) for family in MODELS]


@pytest.mark.parametrize(("copied", "family"), COPIES)
def test_deepened_and_widened_copies(copied, family: str) -> None:
    model = original(family)
    other = copied(model, family)
    assert difference(other, model) < TOLERANCE[family]
    result = hm.merge([model, other], batches(), match="permute", refit=False, progress=False)
    assert difference(result.model, model) < TOLERANCE[family]
    assert result.report.merged_parameters == sum(p.numel() for p in other.parameters())
