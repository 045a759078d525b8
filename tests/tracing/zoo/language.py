"""Tiny random transformers models."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import transformers
from torch import nn

from zoo.case import Case, Inputs, image, tokens

VOCABULARY = 96
TEXT: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": VOCABULARY,
}
GROUPED = {**TEXT, "num_key_value_heads": 2}
VISION: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 16,
    "patch_size": 4,
}
GPT = {"n_embd": 32, "n_layer": 2, "n_head": 4, "vocab_size": VOCABULARY}


def from_config(head: str, kind: str, options: dict[str, Any]) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        config = transformers.AutoConfig.for_model(kind, **options)
        model: nn.Module = getattr(transformers, head).from_config(config)
        return model

    return build


def causal(
    name: str,
    free: int | None,
    *,
    single: bool = False,
    **options: Any,
) -> Case:
    build = from_config("AutoModelForCausalLM", name.split("-")[0], options)
    # the grouped product of expert models has no double precision
    dtype = torch.float32 if "num_experts_per_tok" in options else torch.float64
    return Case(name, build, tokens(VOCABULARY), free, single, dtype)


def masked(name: str, free: int | None, *, kind: str = "", **options: Any) -> Case:
    build = from_config("AutoModelForMaskedLM", kind or name.split("-")[0], options)
    return Case(name, build, tokens(VOCABULARY), free)


def vision(name: str, free: int | None, *, kind: str = "", head: str = "", size: int = 16,
           **options: Any) -> Case:  # fmt: skip
    head = head or "AutoModelForImageClassification"
    return Case(name, from_config(head, kind or name.split("-")[0], options), image(size), free)


def speech(seed: int) -> Inputs:
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(2, 8, 32, generator=generator, dtype=torch.float64)
    ids = torch.randint(3, VOCABULARY, (2, 8), generator=generator)
    return (), {"input_features": features, "decoder_input_ids": ids}


def both_ids(seed: int) -> Inputs:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, VOCABULARY, (2, 2, 8), generator=generator)
    return (), {"input_ids": ids[0], "decoder_input_ids": ids[1]}


# hand counts: the hidden space, and per layer {heads or key-value heads, two head axes or groups,
# feed-forward}
LANGUAGE = [
    causal("llama", 9, single=True, **GROUPED),
    causal("llama-eager", 9, single=True, **GROUPED, attn_implementation="eager"),
    causal("mistral", 9, single=True, **GROUPED),
    causal("qwen2", 9, single=True, **GROUPED),
    causal("qwen3", 9, single=True, **GROUPED, head_dim=8),
    causal("gemma2", 9, single=True, **GROUPED, head_dim=8),
    causal("gemma3_text", 9, single=True, **GROUPED, head_dim=8),
    causal("phi3", 9, single=True, **GROUPED, pad_token_id=0),
    causal("gpt2", 9, **GPT),
    causal("gpt2-eager", 9, **GPT, attn_implementation="eager"),
    causal("gpt_neox", 9, **TEXT),
    causal("opt", 9, ffn_dim=48, word_embed_proj_dim=32,
           **{k: v for k, v in TEXT.items() if k != "intermediate_size"}),
    causal("bloom", 7, single=True, hidden_size=32, n_layer=2, n_head=4, vocab_size=VOCABULARY),
    # query heads and feed-forward; the one value shares its axis with the key, which is turned
    causal("falcon", 5, hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
           vocab_size=VOCABULARY),
    causal("mpt", None, d_model=32, n_heads=4, n_layers=2, vocab_size=VOCABULARY),
    causal("olmo2", None, single=True, **GROUPED, pad_token_id=0),
    causal("cohere", 9, single=True, **GROUPED),
    causal("stablelm", None, single=True, **GROUPED),
    causal("starcoder2", 9, single=True, **GROUPED),
    causal("glm4", None, single=True, **GROUPED, head_dim=8, pad_token_id=0),
    causal("gptj", None, single=True, **GPT, rotary_dim=4),
    causal("phi", None, single=True, **TEXT),
    causal("mixtral", None, single=True, **GROUPED, num_local_experts=4, num_experts_per_tok=2),
    causal("qwen3_moe", None, single=True, **GROUPED, head_dim=8, num_experts=4,
           num_experts_per_tok=2, moe_intermediate_size=24),
    causal("deepseek_v3", None, single=True, **TEXT, num_key_value_heads=4, q_lora_rank=12,
           kv_lora_rank=8, qk_rope_head_dim=4, v_head_dim=8, qk_nope_head_dim=8,
           first_k_dense_replace=2),
    causal("mamba", None, single=True, hidden_size=32, num_hidden_layers=1, vocab_size=VOCABULARY,
           state_size=4),
    causal("gpt_oss", None, single=True, **GROUPED, head_dim=8, num_local_experts=4,
           num_experts_per_tok=2, pad_token_id=0),
    causal("gpt_bigcode", None, **GPT),
    causal("nemotron", None, **GROUPED, pad_token_id=0),
    causal("mamba2", None, single=True, hidden_size=32, num_hidden_layers=1,
           vocab_size=VOCABULARY, state_size=4, num_heads=8, head_dim=8, n_groups=2, chunk_size=4),
    Case("bart", from_config("AutoModelForSeq2SeqLM", "bart", {
        "d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 4,
        "decoder_attention_heads": 4, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48,
        "vocab_size": VOCABULARY}), both_ids),
    masked("bert", 9, **TEXT),
    masked("bert-eager", 9, **TEXT, attn_implementation="eager"),
    masked("roberta", 9, **TEXT),
    masked("distilbert", None, dim=32, hidden_dim=48, n_layers=2, n_heads=4,
           vocab_size=VOCABULARY),
    masked("albert", None, **TEXT, embedding_size=24),
    masked("electra", None, **TEXT, embedding_size=24),
    masked("deberta_v2", None, kind="deberta-v2", **TEXT, relative_attention=True,
           position_buckets=16, pos_att_type=["p2c", "c2p"]),
    masked("modernbert", None, **TEXT, pad_token_id=0, bos_token_id=1, eos_token_id=2,
           cls_token_id=1, sep_token_id=2),
    Case("t5", from_config("AutoModelForSeq2SeqLM", "t5", {
        "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 1, "num_heads": 4,
        "vocab_size": VOCABULARY}), both_ids, None, single=True),
    Case("whisper", from_config("AutoModelForSpeechSeq2Seq", "whisper", {
        "d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 4,
        "decoder_attention_heads": 4, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48,
        "vocab_size": VOCABULARY, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
        "decoder_start_token_id": 1, "suppress_tokens": [], "begin_suppress_tokens": [],
        "max_source_positions": 16, "num_mel_bins": 8}), speech),
]  # fmt: skip

IMAGES = [
    vision("vit", 9, **VISION, intermediate_size=48),
    vision("dinov2", None, **VISION),
    vision("beit", None, **VISION, intermediate_size=48, use_relative_position_bias=True),
    vision("clip_vision", None, kind="clip_vision_model", head="AutoModel", **VISION,
           intermediate_size=48),
    vision("swin", None, size=32, image_size=32, patch_size=2, embed_dim=16, depths=[2, 2],
           num_heads=[2, 4], window_size=4),
    vision("convnext", 9, size=32, hidden_sizes=[8, 12, 16, 24], depths=[1, 1, 2, 1],
           image_size=32),
    vision("convnextv2", None, size=32, hidden_sizes=[16, 24], depths=[1, 1], num_stages=2,
           image_size=32),
    vision("resnet-basic", 9, size=32, embedding_size=8, hidden_sizes=[8, 12, 16],
           depths=[2, 2, 2], layer_type="basic"),
    vision("resnet-bottleneck", 11, size=32, embedding_size=8, hidden_sizes=[16, 24],
           depths=[2, 2], layer_type="bottleneck"),
    vision("bit", None, size=32, embedding_size=8, hidden_sizes=[16, 32], depths=[1, 1],
           num_groups=4),
    vision("mobilenet_v2", None, size=32, image_size=32, depth_multiplier=0.25),
    vision("regnet", None, size=32, embedding_size=8, hidden_sizes=[8, 16, 16, 24],
           depths=[1, 1, 1, 1], groups_width=8),
    vision("segformer", None, size=64, hidden_sizes=[16, 32, 40, 64], depths=[1, 1, 1, 1]),
]  # fmt: skip

TRANSFORMERS = [*LANGUAGE, *IMAGES]
