"""The small Llamas of the benchmark: their names, their shapes, where they are kept."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import torch
from lm_data import DOMAINS, LENGTH
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

SHAPES = {  # layers, width, hidden units, heads
    "A": (4, 128, 344, 4),
    "B": (2, 96, 256, 3),
}
HEAD = 32
KEPT = (0, 2)  # the layers of A that a sibling is cut from


@dataclass(frozen=True)
class Spec:
    """One network.

    Attributes:
        shape: of SHAPES.
        domains: what it is trained on.
        seed: of its first weights and of the order of the text.
        origin: the network that it starts from; None starts from nothing.
    """

    shape: str
    domains: tuple[str, ...]
    seed: int
    origin: Spec | None = None

    @property
    def name(self) -> str:
        kind = "mix" if self.domains == DOMAINS else self.domains[0]
        root = "" if self.origin is None else f"{self.origin.name}-"
        return f"{root}{self.shape}{kind}" + (f"/{self.seed}" if self.origin is None else "")

    def path(self, setting: str) -> Path:
        base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        file = self.name.replace("/", "-seed") + ".safetensors"
        return Path(base) / "hetmerge" / "llm" / setting / file


def build(shape: str) -> LlamaForCausalLM:
    layers, width, hidden, heads = SHAPES[shape]
    config = LlamaConfig(
        vocab_size=256,
        hidden_size=width,
        intermediate_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        head_dim=HEAD,
        max_position_embeddings=LENGTH,
        bos_token_id=None,
        eos_token_id=None,
    )
    return LlamaForCausalLM(config)


def cut(parent: LlamaForCausalLM, shape: str) -> LlamaForCausalLM:
    """A smaller network from the first features, heads and hidden units of some layers."""
    child = build(shape)
    theirs = parent.state_dict()
    with torch.no_grad():
        for name, tensor in child.state_dict().items():
            parts = name.split(".")
            if parts[1] == "layers":
                parts[2] = str(KEPT[int(parts[2])])
            source = theirs[".".join(parts)]
            tensor.copy_(source[tuple(slice(n) for n in tensor.shape)])
    return child


def load(spec: Spec, setting: str) -> nn.Module:
    from safetensors.torch import load_file

    model = build(spec.shape)
    model.load_state_dict(load_file(spec.path(setting)))
    return model.eval()
