"""Where the time of one merge goes: tracing, planning, applying; and the peak of memory.

python benchmarks/vision/timing.py --images 1000
"""

from __future__ import annotations

import argparse
import resource
import time
from collections.abc import Callable
from typing import TypeVar

from cifar_models import load
from cifar_pair import PAIRS
from data import cifar10, data_folder
from measure import machine
from recipes import BATCH
from rich.console import Console

import hetmerge as hm

T = TypeVar("T")
OUT = Console()


def timed(label: str, work: Callable[[], T]) -> T:
    started, used = time.perf_counter(), time.process_time()
    result = work()
    wall, cpu = time.perf_counter() - started, time.process_time() - used
    OUT.print(f"{label:24} {wall:7.2f} s wall, {cpu:7.2f} s processor")
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=1000)
    images = parser.parse_args().images
    OUT.print(machine())
    models = [load(data_folder() / f"{name}.safetensors").net for name in PAIRS["resnets"]]
    batches = list(cifar10("train", images)[0].split(BATCH))
    hm.trace(models[1], batches[0])  # the first export of a process also imports half of torch
    timed("tracing both", lambda: [hm.trace(model, batches[0]) for model in models])
    plan = timed("plan (traces again)", lambda: hm.plan(models, batches, progress=False))
    timed("apply (traces again)", lambda: hm.apply(plan, models, batches, progress=False))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    OUT.print(f"peak memory {peak:.2f} GB")


if __name__ == "__main__":
    main()
