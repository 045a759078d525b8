"""How long it takes to trace large language models without their weights.

python benchmarks/llm/lm_trace.py                # all layers, and a few repeated
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from unittest import mock

import torch
from lm_plan import config_of
from rich.console import Console
from torch import nn
from transformers import LlamaForCausalLM, MixtralConfig, MixtralForCausalLM

import hetmerge as hm
from hetmerge.tracing import exporting
from hetmerge.tracing.repeating import describe

OUT = Console()
INPUTS = {"input_ids": torch.zeros(16, 512, dtype=torch.int64)}
MODELS: dict[str, Callable[[], nn.Module]] = {
    **{f"Llama {n}": lambda n=n: LlamaForCausalLM(config_of(n)) for n in ("3B", "8B", "70B")},
    "Mixtral 8x7B": lambda: MixtralForCausalLM(MixtralConfig()),
}


def model_of(name: str) -> nn.Module:
    with torch.device("meta"):
        return MODELS[name]().eval()


def timed(work: Callable[[], hm.SpaceGraph]) -> tuple[hm.SpaceGraph, float]:
    began = time.process_time()
    found = work()
    return found, time.process_time() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shapes", default=",".join(MODELS), help="some of them")
    chosen = parser.parse_args()
    with mock.patch.object(exporting, "export_repeated", return_value=None):
        hm.trace(
            model_of("Llama 3B"), (), INPUTS
        )  # what is imported and compiled first is not counted
    OUT.print("| shapes of | layers | all layers, s | a few, repeated, s |\n|---|---|---|---|")
    for name in chosen.shapes.split(","):
        model = model_of(name)
        with mock.patch.object(exporting, "export_repeated", return_value=None):
            whole, slow = timed(lambda model=model: hm.trace(model, (), INPUTS))
        found, fast = timed(lambda model=model: hm.trace(model, (), INPUTS))
        if describe(found.program) != describe(whole.program) or found.spaces != whole.spaces:
            raise SystemExit(f"{name}: the two traces differ")
        layers = len(model.get_submodule("model.layers"))
        OUT.print(f"| {name} | {layers} | {slow:.1f} | {fast:.1f} |", highlight=False)


if __name__ == "__main__":
    main()
