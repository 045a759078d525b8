"""How long it takes to trace large language models without their weights.

python benchmarks/llm/lm_trace.py                # 8B, 3B and 70B: all layers, and a few repeated
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from unittest import mock

import torch
from lm_plan import SHAPES, config_of
from rich.console import Console
from torch import nn
from transformers import LlamaForCausalLM

import hetmerge as hm
from hetmerge.tracing import exporting
from hetmerge.tracing.repeating import describe

OUT = Console()
INPUTS = {"input_ids": torch.zeros(16, 512, dtype=torch.int64)}


def model_of(name: str) -> nn.Module:
    with torch.device("meta"):
        return LlamaForCausalLM(config_of(name)).eval()


def timed(work: Callable[[], hm.SpaceGraph]) -> tuple[hm.SpaceGraph, float]:
    began = time.process_time()
    found = work()
    return found, time.process_time() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shapes", default="3B,8B,70B", help=f"of {', '.join(SHAPES)}")
    chosen = parser.parse_args()
    with mock.patch.object(exporting, "export_repeated", return_value=None):
        hm.trace(model_of("3B"), (), INPUTS)  # what is imported and compiled first is not counted
    OUT.print("| shapes of | layers | all layers, s | a few, repeated, s |\n|---|---|---|---|")
    for name in chosen.shapes.split(","):
        model = model_of(name)
        with mock.patch.object(exporting, "export_repeated", return_value=None):
            whole, slow = timed(lambda model=model: hm.trace(model, (), INPUTS))
        found, fast = timed(lambda model=model: hm.trace(model, (), INPUTS))
        if describe(found.program) != describe(whole.program) or found.spaces != whole.spaces:
            raise SystemExit(f"{name}: the two traces differ")
        layers = SHAPES[name][0]
        OUT.print(f"| Llama {name} | {layers} | {slow:.1f} | {fast:.1f} |", highlight=False)


if __name__ == "__main__":
    main()
