"""Tiny random members of any family of transformers: a configuration of given sizes, and inputs."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Any

import torch
import transformers
from torch import nn
from transformers.models.auto import modeling_auto
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

TASKS = {
    "causal": modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    "masked": modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    "image": modeling_auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES,
}
VOCABULARY, PIXELS = 40, 64


@dataclass(frozen=True)
class Shape:
    """Sizes of a member; of a family in stages, width and heads are those of the last."""

    layers: int
    width: int
    heads: int
    groups: int


WIDE, DEEP = Shape(2, 64, 8, 2), Shape(3, 32, 4, 2)
# What a field of a configuration is set to, by the names that families give it.
FIELDS = {
    "layers": "num_hidden_layers n_layer num_layers n_layers encoder_layers decoder_layers "
    "num_self_attends_per_block",
    "width": "hidden_size n_embd d_model embedding_dim dim d_latents",
    "inner": "intermediate_size n_inner ffn_dim hidden_dim encoder_ffn_dim decoder_ffn_dim "
    "ffn_hidden_size",
    "half": "moe_intermediate_size shared_expert_intermediate_size",
    "quarter": "embed_dim embedding_size",
    "heads": "num_attention_heads n_head n_heads num_heads encoder_attention_heads "
    "decoder_attention_heads num_self_attention_heads num_cross_attention_heads mamba_n_heads",
    "groups": "num_key_value_heads num_kv_heads multi_query_groups",
    "8": "head_dim rotary_dim qk_rope_head_dim qk_nope_head_dim v_head_dim num_latents",
    "16": "kv_lora_rank q_lora_rank",
    "4": "groups_width num_experts num_local_experts n_routed_experts moe_num_experts num_groups",
    "2": "num_experts_per_tok moe_k moe_topk window_size",
    "1": "bos_token_id n_group topk_group first_k_dense_replace",
    "0": "pad_token_id",
    "40": "vocab_size",
    "64": "max_position_embeddings n_positions",
    "eos": "eos_token_id",
    "pixels": "image_size",
    "patch": "patch_size",
}
# The same of lists with an entry for each stage: widths double, the second stage is the deep one.
STAGES = {
    "depths": "depths depth num_block_repeats stage_num_blocks",
    "widths": "hidden_sizes embed_dim embed_dims base_attn_unit_dims",
    "heads": "num_attention_heads num_heads",
}
OTHERS = {
    "depths": f"{FIELDS['layers']} {FIELDS['inner']}",
    "widths": FIELDS["inner"],
    "heads": FIELDS["heads"],
}
MULTIPLIERS = ("depth_multiplier", "width_multiplier")  # all of the width
KINDS = ("layer_types", "layers_block_type", "block_types")  # lists of a kind for each layer
PARTS = ("vision_config", "text_config")


# Families that cut their heads in parts: so many times the width and the heads.
TIMES = {"codegen": 2}


def config_of(kind: str, shape: Shape) -> Any:
    """A tiny configuration: every field that this family has, layers of every kind in turn."""
    times = TIMES.get(kind, 1)
    shape = replace(shape, width=times * shape.width, heads=times * shape.heads)
    return _sized(CONFIG_MAPPING[kind], shape)


def _sized(family: Any, shape: Shape) -> Any:
    default = family()
    values = default.to_dict()
    fields = {name: size for name, size in _wanted(shape).items() if _has(default, name)}
    for kind, names in STAGES.items():
        lists = [n for n in names.split() if isinstance(values.get(n), (list, tuple))]
        if lists:  # other names of the same say how many stages there are, or the last one's size
            others = OTHERS[kind].split()
            fields = {name: v for name, v in fields.items() if name not in others}
            fields |= {"patch_size": 4} if "patch_size" in fields else {}
        fields |= {name: _stages(kind, len(values[name]), shape) for name in lists}
    for name in KINDS:
        if isinstance(given := values.get(name), (list, tuple)):
            kinds = list(dict.fromkeys(given))
            fields[name] = [kinds[i % len(kinds)] for i in range(shape.layers)]
    if isinstance(values.get("image_size"), (list, tuple)):
        fields["image_size"] = [PIXELS, PIXELS]
    for name in PARTS:
        if isinstance(part := getattr(default, name, None), transformers.PretrainedConfig):
            fields[name] = _sized(type(part), shape).to_dict()
    if _has(default, "expand") and _has(default, "head_dim"):  # heads share the expanded width
        fields["head_dim"] = 2 * shape.width // shape.heads
    for _ in range(12):  # properties cannot be set: those that the class complains of are left out
        try:
            return family(**fields)
        except Exception as error:
            named = re.search(r"'(\w+)' of|'(\w+)'$|argument '(\w+)'|field '(\w+)'", str(error))
            name = next((part for part in named.groups() if part), "") if named else ""
            if name not in fields:
                raise
            del fields[name]
    return family(**fields)


def _wanted(shape: Shape) -> dict[str, Any]:
    """Fields that are one number each."""
    sizes = {"layers": shape.layers, "width": shape.width, "inner": 2 * shape.width, "eos": 2}
    sizes |= {"half": shape.width, "quarter": shape.width // 4, "pixels": PIXELS, "patch": 8}
    sizes |= {"heads": shape.heads, "groups": shape.groups}
    fields: dict[str, Any] = {
        name: sizes[size] if size in sizes else int(size)
        for size, names in FIELDS.items()
        for name in names.split()
    }
    return fields | dict.fromkeys(MULTIPLIERS, shape.width / 128)


def _stages(kind: str, count: int, shape: Shape) -> list[int]:
    if kind == "depths":
        return [shape.layers if i == 1 else 1 for i in range(count)]
    last = 2 * shape.width if kind == "widths" else shape.heads
    return [max(2, last >> (count - 1 - i)) for i in range(count)]


def _has(config: Any, name: str) -> bool:
    """It is a field, and not one that the class keeps what is allowed in."""
    try:
        return hasattr(config, name) and not (
            name in vars(type(config)) and isinstance(getattr(type(config), name), list)
        )
    except Exception:  # configurations that differ from layer to layer refuse to say
        return True


def member(task: str, kind: str, shape: Shape, seed: int) -> nn.Module:
    """A random model none of whose parameters is zero or one."""
    torch.manual_seed(seed)
    name = TASKS[task][kind]
    family = getattr(transformers, name if isinstance(name, str) else name[0])
    config = config_of(kind, shape)
    if not isinstance(config, family.config_class):  # of the text alone
        config = config.get_text_config()
    model: nn.Module = family(config).float()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.2 * torch.randn_like(parameter) * (parameter.std(correction=0) + 0.5)
        for name, buffer in model.named_buffers():
            if name.endswith(("running_mean", "running_var")):
                buffer += torch.rand_like(buffer)
    return model.eval()


def pair(task: str, kind: str, batch: dict[str, torch.Tensor]) -> tuple[nn.Module, nn.Module]:
    """Two members that run; with a group for each head where others fail."""
    for each_head in (False, True):
        shapes = [replace(s, groups=s.heads) if each_head else s for s in (WIDE, DEEP)]
        try:
            wide, deep = (member(task, kind, s, i) for i, s in enumerate(shapes))
            with torch.no_grad():
                for model in (wide, deep):
                    model(**batch)
            return wide, deep
        except Exception:  # whatever a family says to sizes that it does not allow
            if each_head:
                raise
    raise AssertionError


def inputs(task: str) -> list[dict[str, torch.Tensor]]:
    random = torch.Generator().manual_seed(0)
    if task == "image":
        size = (8, 3, PIXELS, PIXELS)
        return [{"pixel_values": torch.randn(size, generator=random)} for _ in "ab"]
    return [{"input_ids": torch.randint(3, VOCABULARY, (8, 12), generator=random)} for _ in "ab"]
