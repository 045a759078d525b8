"""Train the networks of the benchmark from scratch, on bytes.

HETMERGE_DATA=... python benchmarks/llm/lm_train.py --seeds 0 --pairs specialists,same

A network that is in the cache folder already is not trained again.
"""

from __future__ import annotations

import argparse
import math
import time
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from lm_data import DOMAINS, draw, windows
from lm_models import Spec, build, cut, load
from lm_pairs import PAIRS
from rich.console import Console
from safetensors.torch import save_file
from torch import Tensor, nn

OUT = Console()
BATCH = 32


@dataclass(frozen=True)
class Setting:
    """Steps of a network that starts from nothing, and of one that starts from another."""

    steps: int
    further: int
    compiled: bool = True
    rate: float = 3e-3


SETTINGS = {"smoke": Setting(8, 4, compiled=False), "small": Setting(1500, 600)}


def loss_of(model: nn.Module, ids: Tensor) -> Tensor:
    """Nats per byte of int64 [batch, LENGTH + 1]."""
    logits = model(input_ids=ids[:, :-1]).logits
    return F.cross_entropy(logits.float().flatten(0, 1), ids[:, 1:].flatten())


def start(spec: Spec, setting: str) -> nn.Module:
    """The network before training."""
    if spec.origin is None:
        torch.manual_seed(1000 * spec.seed + ord(spec.shape))
        return build(spec.shape)
    parent = load(spec.origin, setting)
    return parent if spec.shape == spec.origin.shape else cut(parent, spec.shape)


def train(spec: Spec, setting: str) -> nn.Module:
    chosen = SETTINGS[setting]
    steps = chosen.steps if spec.origin is None else chosen.further
    top = chosen.rate if spec.origin is None else chosen.rate / 3
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = start(spec, setting).to(device).train()
    model.set_attn_implementation("eager")  # torch's fused attention is slower in bfloat16 here
    forward = torch.compile(model) if chosen.compiled and device == "cpu" else model
    generator = torch.Generator().manual_seed(spec.seed)
    optimizer = torch.optim.AdamW(
        model.parameters(), top, betas=(0.9, 0.95), weight_decay=0.1, fused=True
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, top, steps, pct_start=0.1)
    began, total = time.perf_counter(), 0.0
    for step in range(1, steps + 1):
        ids = draw(spec.domains, BATCH, generator).to(device)
        with torch.autocast(device, torch.bfloat16):
            loss = loss_of(forward, ids)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        total += loss.item()
        if step % 100 == 0 or step == steps:
            seconds = time.perf_counter() - began
            bits = total / (step % 100 or 100) / math.log(2)
            OUT.print(f"{spec.name}: step {step}, {bits:.3f} bits per byte, {seconds:.0f} s")
            total = 0.0
    model.set_attn_implementation("sdpa")
    return model.cpu().eval()


def ensure(spec: Spec, setting: str) -> None:
    """Train a network, and before it the one that it starts from, unless it is there."""
    path = spec.path(setting)
    if path.exists():
        return
    if spec.origin is not None:
        ensure(spec.origin, setting)
    model = train(spec, setting)
    with torch.no_grad():
        bits = {d: float(loss_of(model, windows(d, "test", 64))) / math.log(2) for d in DOMAINS}
    OUT.print(f"{spec.name}: " + ", ".join(f"{d} {b:.3f}" for d, b in bits.items()))
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, partial)
    partial.replace(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--setting", choices=SETTINGS, default="small")
    parser.add_argument("--pairs", default=",".join(pair.name for pair in PAIRS))
    parser.add_argument("--seeds", default="0,1,2")
    chosen = parser.parse_args()
    names = chosen.pairs.split(",")
    for seed in map(int, chosen.seeds.split(",")):
        for pair in PAIRS:
            for spec in pair.specs(seed) if pair.name in names else ():
                ensure(spec, chosen.setting)


if __name__ == "__main__":
    main()
