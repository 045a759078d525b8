"""How long `hetmerge plan` takes for large language models, of which only the headers exist.

python benchmarks/llm/lm_plan.py                 # Llama 3: 8B + 3B, 70B + 8B
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import torch
from rich.console import Console
from transformers import LlamaConfig, LlamaForCausalLM

import hetmerge as hm
from hetmerge.batches import as_call
from hetmerge.forecast import forecast
from hetmerge.lazy import empty
from hetmerge.options import Options
from hetmerge.shard_writer import header_of

OUT = Console()
SHAPES = {  # layers, hidden, MLP, heads
    "3B": (28, 3072, 8192, 24),
    "8B": (32, 4096, 14336, 32),
    "70B": (80, 8192, 28672, 64),
}
TOKENS, LENGTH, BATCH = 65536, 512, 16


def config_of(name: str) -> LlamaConfig:
    """The configuration of a Llama of this size, whose weights are bfloat16."""
    layers, hidden, inner, heads = SHAPES[name]
    return LlamaConfig(
        vocab_size=128256,
        hidden_size=hidden,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=8,
        architectures=["LlamaForCausalLM"],
        dtype="bfloat16",
    )


def checkpoint(folder: Path, name: str) -> Path:
    """A directory whose file of weights is a header, and a hole as long as they are."""
    path, config = folder / name, config_of(name)
    if not path.exists():
        path.mkdir()
        config.save_pretrained(path)
        parameters = empty(LlamaForCausalLM, config).named_parameters()
        like = {n: torch.empty_like(p, dtype=torch.bfloat16) for n, p in parameters}
        header = bytes(header_of(like, {"format": "pt"}))
        with (path / "model.safetensors").open("wb") as file:
            file.write(header)
            file.truncate(len(header) + sum(2 * tensor.numel() for tensor in like.values()))
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", default="8B+3B,70B+8B", help=f"of {', '.join(SHAPES)}")
    pairs = parser.parse_args().pairs.split(",")
    ids = torch.zeros(BATCH, LENGTH, dtype=torch.int64)
    calls = [as_call({"input_ids": ids})] * (TOKENS // ids.numel())
    with tempfile.TemporaryDirectory() as folder:
        OUT.print("| parents | processor s | parameters |\n|---|---|---|")
        for pair in pairs:
            folders = [checkpoint(Path(folder), name) for name in pair.split("+")]
            began = time.process_time()
            told = forecast([hm.open_checkpoint(f) for f in folders], calls, Options())
            seconds = time.process_time() - began
            OUT.print(f"| {pair} | {seconds:.1f} | {told.parameters:,} |", highlight=False)


if __name__ == "__main__":
    main()
