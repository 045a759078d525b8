"""Two Llamas of different shape in Hugging Face directories, and a configuration of their merge."""

from pathlib import Path

import pytest
import torch

from .conftest import write_config

transformers = pytest.importorskip("transformers")
tokenizers = pytest.importorskip("tokenizers")

TEXT = "the quick brown fox jumps over the lazy dog while seven wizards box in a mixed zoo. " * 40
SHAPES = {"deep": (3, 32, 4), "shallow": (2, 24, 2)}


def write_model(folder: Path, layers: int, hidden: int, heads: int, rows: int = 256) -> None:
    torch.manual_seed(layers)
    config = transformers.LlamaConfig(
        vocab_size=rows,
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=2 * heads,
        num_key_value_heads=heads,
        head_dim=8,
    )
    transformers.LlamaForCausalLM(config).save_pretrained(folder)


def write_tokenizer(folder: Path, text: str) -> None:
    byte_level = tokenizers.pre_tokenizers.ByteLevel
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = byte_level()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=256, initial_alphabet=sorted(set(text)), show_progress=False
    )
    tokenizer.train_from_iterator([text], trainer)
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer)
    fast.save_pretrained(folder)


def configure(folder: Path, **changes: object) -> None:
    config: dict[str, object] = {
        "models": [{"model": name} for name in SHAPES],
        "merge_method": "zip",
        "calibration": {"path": "text.txt", "tokens": 512, "sequence_length": 16},
    }
    write_config(folder / "config.yaml", **{**config, **changes})
