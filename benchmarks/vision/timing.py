"""Where the time of one merge goes (tracing, planning, applying), and its memory.

python benchmarks/vision/timing.py --images 1000
MALLOC_MMAP_THRESHOLD_=1000000 python benchmarks/vision/timing.py     # frees at once: true memory
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import time
from collections.abc import Callable
from pathlib import Path
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


def memory(field: str) -> int:
    """Bytes of this process in /proc/self/status: VmRSS (now) or VmHWM (peak)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(field)).split()[1])


def restart_peak() -> int:
    """Give free memory back to Linux and forget the peak so far; bytes held now."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    return memory("VmRSS")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=1000)
    images = parser.parse_args().images
    OUT.print(machine())
    models = [load(data_folder() / f"{name}.safetensors").net for name in PAIRS["resnets"]]
    batches = list(cifar10("train", images)[0].split(BATCH))
    hm.trace(models[1], batches[0])  # the first export of a process also imports half of torch
    timed("tracing both", lambda: [hm.trace(model, batches[0]) for model in models])
    timed("plan with match='auto'", lambda: hm.plan(models, batches, progress=False))
    plan = timed(
        "plan with match='zip'", lambda: hm.plan(models, batches, match="zip", progress=False)
    )
    cost = timed("cost (traces again)", lambda: plan.cost(models, batches))
    OUT.print(cost.summary())
    before = restart_peak()
    timed("apply (traces again)", lambda: hm.apply(plan, models, batches, progress=False))
    growth = memory("VmHWM") - before
    OUT.print(
        f"peak memory of apply: {growth / 1e6:.0f} MB over {before / 1e6:.0f} MB before it, "
        f"{cost.peak_bytes / 1e6:.0f} MB stated ({cost.peak_bytes / growth - 1:+.0%})"
    )


if __name__ == "__main__":
    main()
