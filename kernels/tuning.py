"""Block shapes: committed tables per operation and device, the nearest size taken.

``configs/<op>,device=<name>.json`` is written by ``benchmarks/gpu.sh``; a device without a table
uses ``<op>,device=default.json``. An entry is {"dtype", "size", "config"};
its dtype is "float32", "half" for float16 and bfloat16, or "any".
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
import triton

CONFIGS = Path(__file__).parent / "configs"
Config = Mapping[str, Any]


def interpreted() -> bool:
    """Kernels run in Triton's interpreter, where products of bfloat16 tiles come out wrong."""
    return bool(triton.knobs.runtime.interpret)


def choose(op: str, dtype: torch.dtype, size: int, device: torch.device) -> Config:
    """The config of this dtype, or of all, whose size is nearest, as a ratio, to ``size``."""
    found = _table(op, _name(device))
    names = ("float32" if dtype == torch.float32 else "half", "any")
    entries = [entry for entry in found if entry["dtype"] in names]
    nearest = min(entries, key=lambda entry: abs(math.log(entry["size"] / max(size, 1))))
    config: Config = nearest["config"]
    return config


def multiprocessors(device: torch.device) -> int:
    """Programs that run at once, at least; on the CPU, where one does, a number for tests."""
    if device.type != "cuda":
        return 8
    return int(torch.cuda.get_device_properties(device).multi_processor_count)


def file_name(op: str, device_name: str) -> str:
    return f"{op},device={device_name.replace(' ', '_').replace('/', '_')}.json"


@cache
def _name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "default"


@cache
def _table(op: str, device_name: str) -> Sequence[Mapping[str, Any]]:
    path = CONFIGS / file_name(op, device_name)
    if not path.exists():
        path = CONFIGS / file_name(op, "default")
    entries: Sequence[Mapping[str, Any]] = json.loads(path.read_text())
    return entries
