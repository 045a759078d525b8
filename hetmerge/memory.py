"""Memory of the process that is free goes back to the system."""

from __future__ import annotations

import ctypes
import sys


def trim() -> None:
    """Return freed blocks below the size that is mapped on its own; nothing where there is no way.

    Weights of 8 to 32 MB come and go between longer-lived values, and the C library would keep the
    holes they leave.
    """
    if sys.platform == "linux":
        trim_heap = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim_heap is not None:
            trim_heap(0)
