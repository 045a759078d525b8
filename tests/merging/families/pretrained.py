"""Tiny random members of Hugging Face families; nothing is downloaded."""

from typing import Any

import torch
import transformers as tf
from torch import nn


def resnet(depth: int, width: int, second: int = 0) -> nn.Module:
    config = tf.ResNetConfig(
        embedding_size=width,
        hidden_sizes=[width, 2 * width],
        depths=[depth, second or depth],
        layer_type="basic",
        num_labels=5,
    )
    return tf.ResNetForImageClassification(config)


def vit(depth: int, width: int, heads: int = 2) -> nn.Module:
    config = tf.ViTConfig(
        hidden_size=width,
        num_hidden_layers=depth,
        num_attention_heads=heads,
        intermediate_size=2 * width,
        image_size=16,
        patch_size=8,
        num_labels=5,
    )
    return tf.ViTForImageClassification(config)


def llama(
    depth: int, width: int, heads: int = 4, kv: int = 2, head_dim: int = 8, **more: Any
) -> nn.Module:
    config = tf.LlamaConfig(
        hidden_size=width,
        num_hidden_layers=depth,
        num_attention_heads=heads,
        num_key_value_heads=kv,
        head_dim=head_dim,
        intermediate_size=2 * width,
        vocab_size=31,
        max_position_embeddings=32,
        **more,
    )
    return tf.LlamaForCausalLM(config)


def gpt2(depth: int, width: int, heads: int = 2) -> nn.Module:
    config = tf.GPT2Config(
        n_embd=width, n_layer=depth, n_head=heads, vocab_size=31, n_positions=16,
        bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    return tf.GPT2LMHeadModel(config)


def bert(depth: int, width: int, heads: int = 2) -> nn.Module:
    config = tf.BertConfig(
        hidden_size=width,
        num_hidden_layers=depth,
        num_attention_heads=heads,
        intermediate_size=2 * width,
        vocab_size=31,
        max_position_embeddings=16,
    )
    return tf.BertForMaskedLM(config)


def lively(model: nn.Module, seed: int) -> nn.Module:
    """Weights and norms far from their initial values, so that a mistake shows in the outputs."""
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=random)
            if parameter.dim() > 1:
                parameter.copy_(noise * parameter[0].numel() ** -0.5)
            else:
                parameter.add_(0.2 * noise)
        for name, buffer in model.named_buffers():
            if name.endswith("running_mean"):
                buffer.copy_(0.3 * torch.randn(buffer.shape, generator=random))
            elif name.endswith("running_var"):
                buffer.copy_(0.5 + torch.rand(buffer.shape, generator=random))
    return model.eval()


def images(seed: int = 0) -> list[dict[str, torch.Tensor]]:
    random = torch.Generator().manual_seed(seed)
    return [{"pixel_values": torch.randn(8, 3, 16, 16, generator=random)} for _ in range(3)]


def tokens(seed: int = 0) -> list[dict[str, torch.Tensor]]:
    random = torch.Generator().manual_seed(seed)
    batches = []
    for _ in range(3):
        mask = torch.ones(8, 12, dtype=torch.int64)
        mask[:3, 9:] = 0
        ids = torch.randint(0, 31, (8, 12), generator=random)
        batches.append({"input_ids": ids, "attention_mask": mask})
    return batches
