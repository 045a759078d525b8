"""Memory of the process that is free goes back to the system."""

from __future__ import annotations

import ctypes
import os
import sys
from pathlib import Path

import torch

_GROUPS = Path("/sys/fs/cgroup")
LIMITS = (_GROUPS / "memory.max", _GROUPS / "memory" / "memory.limit_in_bytes")


def trim() -> None:
    """Return freed blocks below the size that is mapped on its own; nothing where there is no way.

    Weights of 8 to 32 MB come and go between longer-lived values, and the C library would keep the
    holes they leave.
    """
    if sys.platform == "linux":
        trim_heap = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim_heap is not None:
            trim_heap(0)


def resident() -> int:
    """Bytes of physical memory that this process holds; 0 where the system does not tell."""
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    except OSError:
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")


def total(device: str = "cpu") -> int:
    """Bytes of physical memory of this machine, or what a container may have of it, or of its GPU;
    0 where the system does not tell."""
    if device == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    try:
        found = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError):
        return 0
    return min([found, *_limits()])


def _limits() -> list[int]:
    """Of the control group that this process is in, under either version of them."""
    found = []
    for path in LIMITS:
        try:
            text = path.read_text(encoding="ascii").strip()
        except OSError:
            continue
        if text.isdigit():  # "max" is no limit
            found.append(int(text))
    return found
