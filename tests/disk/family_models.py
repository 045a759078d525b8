"""Tiny random members of every family that is promised to work: (layers, width, heads, groups)."""

from collections.abc import Callable
from typing import Any

import torch
import transformers as tf
from torch import nn

VOCABULARY = 40
Maker = Callable[[int, int, int, int], nn.Module]


def grouped(config: Any, model: Any, **fixed: Any) -> Maker:
    """Decoders with rotary embeddings and grouped-query attention."""
    return lambda layers, width, heads, groups: model(
        config(
            vocab_size=VOCABULARY,
            hidden_size=width,
            intermediate_size=2 * width,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=groups,
            head_dim=8,
            max_position_embeddings=64,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
            **fixed,
        )
    )


def _plain(config: Any, model: Any, names: dict[str, str], **fixed: Any) -> Maker:
    """Families whose numbers go by other names."""
    known = {
        "width": "hidden_size",
        "layers": "num_hidden_layers",
        "heads": "num_attention_heads",
        "inner": "intermediate_size",
        **names,
    }

    def make(layers: int, width: int, heads: int, groups: int) -> nn.Module:
        sizes = {"width": width, "layers": layers, "heads": heads, "inner": 2 * width}
        return model(config(**{known[k]: v for k, v in sizes.items() if known[k]}, **fixed))

    return make


def _tower(layers: int, width: int, heads: int) -> dict[str, int]:
    return {
        "hidden_size": width,
        "intermediate_size": 2 * width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
    }


def _falcon(**fixed: Any) -> Maker:
    """Queries, keys and values in one product, cut by lists of numbers; weights kept transposed."""
    return _plain(tf.FalconConfig, tf.FalconForCausalLM, {"inner": ""}, **fixed, **_TEXT)


_TEXT = {"vocab_size": VOCABULARY, "max_position_embeddings": 64}
_IMAGE = {"image_size": 16, "patch_size": 8}

GROUPED = {
    "llama": grouped(tf.LlamaConfig, tf.LlamaForCausalLM),
    "mistral": grouped(tf.MistralConfig, tf.MistralForCausalLM),
    "qwen2": grouped(tf.Qwen2Config, tf.Qwen2ForCausalLM),
    "qwen3": grouped(tf.Qwen3Config, tf.Qwen3ForCausalLM),
    "gemma2": grouped(tf.Gemma2Config, tf.Gemma2ForCausalLM),
    "gemma3": grouped(tf.Gemma3TextConfig, tf.Gemma3ForCausalLM),
    "phi3": grouped(tf.Phi3Config, tf.Phi3ForCausalLM),
    "olmo2": grouped(tf.Olmo2Config, tf.Olmo2ForCausalLM),
    "starcoder2": grouped(tf.Starcoder2Config, tf.Starcoder2ForCausalLM),
}


_ROUTED = {"num_experts_per_tok": 2}  # of four experts

EXPERTS = {
    # experts stored one by one
    "mixtral": grouped(tf.MixtralConfig, tf.MixtralForCausalLM, num_local_experts=4, **_ROUTED),
    # experts with biases
    "gpt-oss": grouped(tf.GptOssConfig, tf.GptOssForCausalLM, num_local_experts=4, **_ROUTED),
    # rotary embeddings as complex numbers, latent attention, a dense layer before others
    "deepseek2": lambda layers, width, heads, _: grouped(
        tf.DeepseekV2Config,
        tf.DeepseekV2ForCausalLM,
        **_ROUTED,
        n_routed_experts=4,
        moe_intermediate_size=width,
        kv_lora_rank=16,
        q_lora_rank=16,
        qk_rope_head_dim=8,
        qk_nope_head_dim=8,
        v_head_dim=8,
        first_k_dense_replace=1,
    )(layers, width, heads, heads),
}
OTHERS = {
    # slopes of heads, those of four every second of eight
    "bloom": _plain(
        tf.BloomConfig,
        tf.BloomForCausalLM,
        {"layers": "n_layer", "heads": "n_head", "inner": ""},
        vocab_size=VOCABULARY,
    ),
    "gpt2": _plain(
        tf.GPT2Config,
        tf.GPT2LMHeadModel,
        {"width": "n_embd", "layers": "n_layer", "heads": "n_head", "inner": "n_inner"},
        vocab_size=VOCABULARY,
        n_positions=64,
        bos_token_id=0,
        eos_token_id=0,
    ),
    "falcon": _falcon(multi_query=True),
    "falcon-groups": _falcon(new_decoder_architecture=True, num_kv_heads=2),
    "falcon-alibi": _falcon(multi_query=False, parallel_attn=False, alibi=True, bias=True),
    "gpt-neox": _plain(tf.GPTNeoXConfig, tf.GPTNeoXForCausalLM, {}, **_TEXT),
    "opt": _plain(tf.OPTConfig, tf.OPTForCausalLM, {"inner": "ffn_dim"}, **_TEXT),
    "bert": _plain(tf.BertConfig, tf.BertForMaskedLM, {}, **_TEXT),
    "roberta": _plain(tf.RobertaConfig, tf.RobertaForMaskedLM, {}, **_TEXT),
    "distilbert": _plain(
        tf.DistilBertConfig,
        tf.DistilBertForMaskedLM,
        {"width": "dim", "layers": "n_layers", "heads": "n_heads", "inner": "hidden_dim"},
        **_TEXT,
    ),
    "vit": _plain(tf.ViTConfig, tf.ViTForImageClassification, {}, num_labels=5, **_IMAGE),
    "dinov2": _plain(
        tf.Dinov2Config,
        tf.Dinov2ForImageClassification,
        {"inner": ""},
        mlp_ratio=2,
        num_labels=5,
        **_IMAGE,
    ),
    "clip": _plain(
        tf.CLIPVisionConfig, tf.CLIPVisionModelWithProjection, {}, projection_dim=16, **_IMAGE
    ),
    # a configuration inside of a configuration, and a text tower that no output depends on
    "clip-classes": lambda layers, width, heads, groups: tf.CLIPForImageClassification(
        tf.CLIPConfig(
            vision_config=_tower(layers, width, heads) | _IMAGE,
            text_config=_tower(2, 16, 2) | {"vocab_size": VOCABULARY, "eos_token_id": 2},
            num_labels=5,
        )
    ),
    # stages, in which every second block shifts its windows
    "swin": lambda layers, width, heads, groups: tf.SwinForImageClassification(
        tf.SwinConfig(
            embed_dim=width // 2,
            depths=[1, layers],
            num_heads=[2, heads],
            image_size=16,
            patch_size=2,
            window_size=2,
            num_labels=5,
        )
    ),
    # a pooler whose output is not returned
    "layoutlm": _plain(
        tf.LayoutLMConfig, tf.LayoutLMForMaskedLM, {}, max_2d_position_embeddings=16, **_TEXT
    ),
}
VISION = ("vit", "dinov2", "clip", "clip-classes", "swin")


def inputs(family: str) -> list[dict[str, torch.Tensor]]:
    random = torch.Generator().manual_seed(0)
    if family in VISION:
        return [{"pixel_values": torch.randn(8, 3, 16, 16, generator=random)} for _ in range(2)]
    return [{"input_ids": torch.randint(3, VOCABULARY, (8, 12), generator=random)} for _ in "ab"]
