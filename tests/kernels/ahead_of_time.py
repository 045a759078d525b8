"""Compile every launch of the launchers for GPUs that need not be there; run by test_compiled.py.

Launches are recorded instead of run, so what is compiled is what the launchers ask for, with the
types, the alignment and the constants they would have on a device.
"""

from __future__ import annotations

import contextlib
import inspect
import io
import json
import re
import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

TYPES = {
    torch.float64: "fp64",
    torch.float32: "fp32",
    torch.float16: "fp16",
    torch.bfloat16: "bf16",
    torch.int64: "i64",
    torch.int32: "i32",
    torch.uint8: "u8",
}


class Recorder:
    """Stands in for a kernel: ``recorder[grid](...)`` notes the arguments."""

    def __init__(self, kernel: JITFunction[Any], found: list[tuple[Any, dict[str, Any]]]) -> None:
        self.kernel, self.found = kernel, found

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        def note(*args: Any, **named: Any) -> None:
            options = {k: named.pop(k) for k in ("num_warps", "num_stages") if k in named}
            bound = inspect.signature(self.kernel.fn).bind(*args, **named).arguments
            self.found.append((self.kernel, {"bound": bound, "options": options}))

        return note


@contextlib.contextmanager
def recording(module: Any) -> Iterator[list[tuple[Any, dict[str, Any]]]]:
    """The launches of ``module``'s kernels while the context lasts."""
    kernels = {k: v for k, v in vars(module).items() if k.endswith("_kernel")}
    found: list[tuple[Any, dict[str, Any]]] = []
    try:
        for name, kernel in kernels.items():
            setattr(module, name, Recorder(kernel, found))
        yield found
    finally:
        for name, kernel in kernels.items():
            setattr(module, name, kernel)


def source_of(kernel: JITFunction[Any], bound: dict[str, Any]) -> ASTSource:
    """The kernel with the specialisation that a launch with these arguments has."""
    signature, constants, attrs = {}, {}, {}
    for i, parameter in enumerate(kernel.params):
        value = bound[parameter.name]
        if parameter.is_constexpr or value is None or (type(value) is int and value == 1):
            signature[parameter.name] = "constexpr"
            constants[parameter.name] = value
        elif isinstance(value, torch.Tensor):
            signature[parameter.name] = "*" + TYPES[value.dtype]
            attrs[(i,)] = [["tt.divisibility", 16]]
        else:
            signature[parameter.name] = "i32" if isinstance(value, int) else "fp32"
            if isinstance(value, int) and value % 16 == 0:
                attrs[(i,)] = [["tt.divisibility", 16]]
    return ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=attrs)


def compile_for(kernel: Any, launch: dict[str, Any], arch: int) -> dict[str, Any]:
    """Instructions and spills of one launch on sm_<arch>."""
    log = io.StringIO()
    with contextlib.redirect_stdout(log), triton.knobs.nvidia.scope():
        triton.knobs.nvidia.dump_ptxas_log = True
        done = triton.compile(
            source_of(kernel, launch["bound"]),
            target=GPUTarget("cuda", arch, 32),
            options=launch["options"],
        )
    ptx = done.asm["ptx"]
    spills = [int(n) for n in re.findall(r"(\d+) bytes spill stores", log.getvalue())]
    registers = [int(n) for n in re.findall(r"Used (\d+) registers", log.getvalue())]
    words = re.findall(r"\b(wgmma|tcgen05\.mma|mma\.sync|cp\.async)\b", ptx)
    return {
        "instructions": sorted(set(words)),
        "spills": max(spills, default=None),
        "registers": max(registers, default=None),
        "shared": done.metadata.shared,
    }
