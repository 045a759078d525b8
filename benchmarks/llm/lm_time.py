"""Where the time of merging large checkpoints goes, stage by stage.

python benchmarks/llm/lm_time.py --device cuda                    # shapes of Llama-3-8B and 3.2-3B
python benchmarks/llm/lm_time.py --shapes large,small --layers 2,2 --tokens 2048 --dtype float32

The weights are random bfloat16 numbers: time does not depend on them. A stage does not count what
it waits for in another one; stages of a GPU are waited for at their ends.
"""

from __future__ import annotations

import argparse
import functools
import shutil
import signal
import sys
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import torch
from lm_memory import SHAPES, batches, most_resident, record, write
from rich.console import Console

import hetmerge as hm
from hetmerge import calibration, huggingface, network
from hetmerge.execution import Walker
from hetmerge.matching import Matcher
from hetmerge.ops.moments import Moments
from hetmerge.projection import Projector
from hetmerge.refit import Fitter
from hetmerge.shard_writer import ShardWriter
from hetmerge.shards import Stored

sys.path.insert(0, str(Path(__file__).parents[1]))
import lines

OUT = Console()
RESULTS = Path(__file__).parents[1] / "results" / "llm-time.csv"
STAGES: dict[str, list[tuple[Any, str]]] = {
    "reading": [(Stored, "read")],
    "writing": [(ShardWriter, "__init__"), (ShardWriter, "write"), (ShardWriter, "finish")],
    "tracing": [(network, "spaces_of"), (network, "export"), (huggingface, "export")],
    "running": [(Walker, "make")],
    "alignment": [(calibration, "align")],
    "moments": [(Moments, "update")],
    "matching": [(Matcher, "_match_spaces")],
    "projecting": [(Projector, "tensor")],
    "solving": [(Fitter, "_solve")],
}


class Clock:
    """Seconds per stage, each second in the innermost one only."""

    def __init__(self, device: str) -> None:
        self.device = device
        self.seconds = {**dict.fromkeys(STAGES, 0.0), "other": 0.0}
        self.inside = ["other"]
        self.last = time.perf_counter()

    def tick(self) -> None:
        """What has passed belongs to the stage that runs."""
        if self.device != "cpu":
            torch.cuda.synchronize()
        now = time.perf_counter()
        self.seconds[self.inside[-1]] += now - self.last
        self.last = now

    def watch(self, stage: str, owner: Any, name: str) -> None:
        """Count the calls of a function as a stage."""
        function: Callable[..., Any] = getattr(owner, name)

        @functools.wraps(function)
        def counted(*args: Any, **kwargs: Any) -> Any:
            self.tick()
            self.inside.append(stage)
            try:
                return function(*args, **kwargs)
            finally:
                self.tick()
                self.inside.pop()

        setattr(owner, name, counted)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shapes", default="8B,3B", help=f"two of {', '.join(SHAPES)}")
    parser.add_argument("--layers", default="32,28")
    parser.add_argument("--tokens", type=int, default=65536)
    parser.add_argument("--batch", type=int, default=16, help="sequences of 512 tokens")
    parser.add_argument("--match", default="zip")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--folder", type=Path, default=Path("hetmerge-time"))
    parser.add_argument("--no-refit", action="store_true")
    chosen = parser.parse_args()
    names, layers = chosen.shapes.split(","), list(map(int, chosen.layers.split(",")))
    folders = [chosen.folder / f"{name}-{count}" for name, count in zip(names, layers, strict=True)]
    began = time.perf_counter()
    for name, count, folder in zip(names, layers, folders, strict=True):
        if not folder.exists():
            write(folder, name, count, chosen.device)
    OUT.print(f"checkpoints: {time.perf_counter() - began:.1f} s")
    out = chosen.folder / "merged"
    shutil.rmtree(out, ignore_errors=True)
    clock = Clock(chosen.device)
    for stage, found in STAGES.items():
        for owner, name in found:
            clock.watch(stage, owner, name)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))
    try:
        hm.merge_to(
            out,
            folders,
            batches(chosen.tokens, chosen.batch),
            match=chosen.match,
            refit=not chosen.no_refit,
            device=chosen.device,
            dtype=getattr(torch, chosen.dtype),
            progress=False,
        )
    finally:  # also of a run that is stopped
        clock.tick()
        OUT.print({stage: round(seconds, 2) for stage, seconds in clock.seconds.items()})
    cuda = chosen.device != "cpu"
    row = {
        "shapes": "+".join(names),
        "layers": "+".join(map(str, layers)),
        "tokens": chosen.tokens,
        "match": chosen.match + ("" if chosen.no_refit else "+refit"),
        "dtype": chosen.dtype,
        "device": torch.cuda.get_device_name() if cuda else "cpu",
        **{f"{stage} s": f"{seconds:.2f}" for stage, seconds in clock.seconds.items()},
        "total s": f"{sum(clock.seconds.values()):.2f}",
        "GPU GB": f"{torch.cuda.max_memory_allocated() / 1e9:.2f}" if cuda else "",
        "resident GB": f"{most_resident() / 1e9:.2f}",
        "date": date.today().isoformat(),
        "commit": lines.code_commit("benchmarks/llm"),
    }
    record(RESULTS, row)


if __name__ == "__main__":
    main()
