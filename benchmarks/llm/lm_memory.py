"""Peak memory of merging checkpoints shaped as two published models, beside its forecast.

python benchmarks/llm/lm_memory.py                           # 1.2 B + 0.5 B parameters
python benchmarks/llm/lm_memory.py --tokens 512 --layers 2,3 # fewer layers, which takes minutes

The weights are random bfloat16 numbers: memory and time do not depend on them.
"""

from __future__ import annotations

import argparse
import csv
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from datetime import date
from pathlib import Path

import torch
import transformers as tf
from rich.console import Console

import hetmerge as hm
from hetmerge.batches import as_call
from hetmerge.folder_merge import unfinished
from hetmerge.forecast import forecast
from hetmerge.lazy import empty
from hetmerge.options import Options
from hetmerge.shard_writer import JOURNAL, ShardWriter

OUT = Console()
RESULTS = Path(__file__).parents[1] / "results" / "llm-memory.csv"
LENGTH, BATCH, VOCABULARY = 512, 4, 128256
LLAMA = {"rope_theta": 500000.0, "tie_word_embeddings": True}
QWEN = {"rope_theta": 1000000.0, "tie_word_embeddings": True}
FAMILIES = {
    "large": (tf.LlamaForCausalLM, tf.LlamaConfig, {**LLAMA, "head_dim": 64}),
    "small": (tf.Qwen2ForCausalLM, tf.Qwen2Config, QWEN),
    "8B": (tf.LlamaForCausalLM, tf.LlamaConfig, {**LLAMA, "tie_word_embeddings": False}),
    "3B": (tf.LlamaForCausalLM, tf.LlamaConfig, {**LLAMA, "head_dim": 128}),
}
SHAPES = {  # hidden, MLP, heads, groups of
    "large": (2048, 8192, 32, 8),  # Llama-3.2-1B
    "small": (896, 4864, 14, 2),  # Qwen2.5-0.5B
    "8B": (4096, 14336, 32, 8),  # Llama-3-8B
    "3B": (3072, 8192, 24, 8),  # Llama-3.2-3B
}


def write(folder: Path, name: str, layers: int, device: str = "cpu") -> None:
    """A random checkpoint, tensor by tensor; the numbers are made on a device."""
    hidden, inner, heads, groups = SHAPES[name]
    kind, configuration, more = FAMILIES[name]
    config = configuration(
        vocab_size=VOCABULARY,
        hidden_size=hidden,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=groups,
        architectures=[kind.__name__],
        dtype="bfloat16",
        **more,
    )
    folder.mkdir(parents=True)
    model = empty(kind, config)
    like = {n: torch.empty_like(t, dtype=torch.bfloat16) for n, t in model.named_parameters()}
    writer = ShardWriter(folder, like, 5_000_000_000)
    random = torch.Generator(device).manual_seed(len(name))
    for tensor, shape in like.items():
        values = torch.full(shape.shape, float("norm" in tensor))
        if shape.dim() > 1:
            values = torch.empty(shape.shape, device=device).normal_(0, 0.02, generator=random)
        writer.write(tensor, values)
        writer.finish([tensor])
    writer.close()
    (folder / JOURNAL).unlink(missing_ok=True)
    config.save_pretrained(folder)


def batches(tokens: int, size: int = BATCH) -> list[dict[str, torch.Tensor]]:
    random = torch.Generator().manual_seed(0)
    ids = torch.randint(VOCABULARY, (-(-tokens // LENGTH), LENGTH), generator=random)
    if tokens < size * LENGTH:
        ids = ids[:, : tokens // size].expand(size, -1)
    return [{"input_ids": part} for part in ids.split(size)]


def foresee(folders: list[Path], out: Path, tokens: int, match: str) -> dict[str, float]:
    """What a merge is said to hold at most, in GB."""
    models = [hm.open_checkpoint(folder) for folder in folders]
    calls = [as_call(batch) for batch in batches(tokens)]
    return {"forecast": forecast(models, calls, Options(match=match)).peak_bytes / 1e9}


def merge(folders: list[Path], out: Path, tokens: int, match: str) -> dict[str, float]:
    """What the process held at most, in GB."""
    began = time.perf_counter()
    hm.merge_to(out, folders, batches(tokens), match=match, progress=False)
    return {
        "peak": most_resident() / 1e9,
        "seconds": time.perf_counter() - began,
    }


def most_resident() -> int:
    """Most bytes of physical memory of this process. What getrusage says includes the process that
    started it."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise SystemExit("/proc/self/status has no VmHWM; this benchmark needs Linux")


def record(path: Path, row: Mapping[str, object]) -> None:
    """Show a line and add it to a table."""
    OUT.print(row)
    fresh = not path.exists()
    with path.open("a", newline="") as file:
        table = csv.DictWriter(file, list(row))
        if fresh:
            table.writeheader()
        table.writerow(row)


STAGES = {"forecast": foresee, "merge": merge}  # each in a process of its own


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--layers", default="16,24", help="of the large and the small model")
    parser.add_argument("--match", default="zip")
    parser.add_argument("--folder", type=Path, default=Path("hetmerge-memory"))
    parser.add_argument("--stage", choices=STAGES, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    layers = [int(count) for count in chosen.layers.split(",")]
    named = list(zip(("large", "small"), layers, strict=True))
    folders = [chosen.folder / f"{name}-{count}" for name, count in named]
    out = chosen.folder / f"merged-{'-'.join(map(str, layers))}"
    if chosen.stage:
        found = STAGES[chosen.stage](folders, out, chosen.tokens, chosen.match)
        sys.stdout.write(json.dumps(found) + "\n")
        return
    for (name, count), folder in zip(named, folders, strict=True):
        if not folder.exists():
            write(folder, name, count)
    found = {}
    shutil.rmtree(unfinished(out), ignore_errors=True)  # of a run that was stopped
    for stage in STAGES:
        command = [sys.executable, *sys.argv, "--stage", stage]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        found |= json.loads(done.stdout.splitlines()[-1])
    shutil.rmtree(out)
    row = {
        "match": chosen.match,
        "layers": "+".join(map(str, layers)),
        "tokens": chosen.tokens,
        **{name: f"{value:.3f}" for name, value in found.items()},
        "date": date.today().isoformat(),
    }
    record(RESULTS, row)


if __name__ == "__main__":
    main()
