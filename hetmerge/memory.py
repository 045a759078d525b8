"""Memory of the process that is free goes back to the system."""

from __future__ import annotations

import ctypes
import os
import sys
from pathlib import Path

import torch


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
    """Bytes of physical memory of this machine or of its GPU; 0 where the system does not tell."""
    if device == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError):
        return 0
