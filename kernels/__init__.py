"""Triton kernels, imported as ``hetmerge.kernels``.

The launchers are imported on first use (PEP 562), so that a machine without Triton can import the
package. Shapes, values and devices are checked by ``hetmerge.ops``, not here.
"""

from importlib import import_module
from typing import Any

if __name__ != "hetmerge.kernels":
    raise ImportError(
        f"this folder was imported as {__name__!r}, but it is the package hetmerge.kernels: "
        "import that, or take hetmerge's checkout off sys.path"
    )

_HOMES = {
    "launch_centre": "similarity",
    "launch_cross": "moments",
    "launch_grams": "similarity",
    "launch_moments": "moments",
    "launch_project": "project",
    "launch_sums": "sums",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
