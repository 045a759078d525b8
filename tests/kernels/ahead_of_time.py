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

from hetmerge.kernels import moments, project, similarity, sums
from hetmerge.kernels.tuning import CONFIGS
from hetmerge.ops.operand import columns_last, patches

ARCHS = (80, 90, 100)
MEASURED = {"NVIDIA_H200": 90}  # devices with tables of their own
TYPES = {
    torch.float64: "fp64",
    torch.float32: "fp32",
    torch.float16: "fp16",
    torch.bfloat16: "bf16",
    torch.int64: "i64",
    torch.int8: "i8",
    torch.int32: "i32",
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


def launches() -> Iterator[tuple[str, Any, dict[str, Any]]]:
    """Name, kernel and arguments of what every committed config leads to, and of every layout.

    The name of a config that was measured on a device begins with the device's.
    """
    entries = [
        (op, path.stem.partition("device=")[2], entry)
        for op in ("moments", "project", "similarity")
        for path in sorted(CONFIGS.glob(f"{op},device=*.json"), reverse=True)  # the default first
        for entry in json.loads(path.read_text())
    ]
    for op, device, entry in entries:
        config = entry["config"]
        words = [op, entry["dtype"], entry["size"], *config.values()]
        name = " ".join(map(str, words if device == "default" else [device, *words]))
        dtype = torch.float32 if entry["dtype"] == "float32" else torch.bfloat16
        if op == "moments":
            for samples in (64, 4096):
                x = columns_last(torch.zeros(samples, 64, dtype=dtype))
                yield from moments_of([x, x], config, name)
        elif op == "similarity":
            yield from grams_of(dtype, config, name)
        else:
            yield from projection_of((4, entry["size"]), config, name)

    wide = torch.zeros(64, 64)
    layouts = {
        "masked": [columns_last(wide.half(), wide[:, 0] == 0)],
        "columns": [columns_last(wide.bfloat16().T)],
        "patches": patches(wide.reshape(1, 4, 32, 32), (3, 3), (1, 1), (1, 1),
                           torch.arange(900), (30, 30)),
        "odd": [columns_last(wide[:, 1:])],
        "mixed": [columns_last(wide), columns_last(wide.bfloat16())],
    }  # fmt: skip
    for name, operands in layouts.items():
        yield from moments_of(operands, None, f"moments {name}")
    for shape in ((4, 33), (4, 20, 3, 3), (4, 20000), (4,)):
        yield from projection_of(shape, None, f"project {list(shape)}")


def moments_of(operands: Any, config: Any, name: str) -> Iterator[tuple[str, Any, dict[str, Any]]]:
    width = sum(len(operand.features) for operand in operands)
    with recording(moments) as found:
        double = torch.zeros(width * width, dtype=torch.float64)
        moments.launch_moments(operands, torch.zeros(width), double, config)
        if len(operands[0].samples) < moments.MIN_SHARE:  # split, it does as the triangle
            moments.launch_cross(operands, operands, None, None, double.view(width, width), config)
    with recording(sums) as added:
        for shift in (None, double[:width]):
            sums.launch_sums(operands, shift)
        both = torch.zeros(2, width, dtype=torch.float64)
        sums.launch_judge(both, both, 2)
    for kernel, launch in found + added:
        yield name, kernel, launch


def grams_of(
    dtype: torch.dtype, config: Any, name: str
) -> Iterator[tuple[str, Any, dict[str, Any]]]:
    with recording(similarity) as found:
        similarity.launch_grams([torch.zeros(64, 64, dtype=dtype)], config)
        similarity.launch_centre(torch.zeros(1, 64, 64))
    for kernel, launch in found:
        yield name, kernel, launch


def projection_of(
    shape: tuple[int, ...], config: Any, name: str
) -> Iterator[tuple[str, Any, dict[str, Any]]]:
    weights = [torch.zeros(shape), torch.zeros(shape, dtype=torch.bfloat16)]
    rows = [torch.zeros(shape[0], dtype=torch.int32)] * 2
    cols = None if len(shape) == 1 else [torch.zeros(shape[1], dtype=torch.int32)] * 2
    with recording(project) as found:
        factors = [torch.zeros(shape[0])] * 2
        project.launch_project(weights, rows, cols, factors, torch.zeros(shape), config)
    for kernel, launch in found:
        yield name, kernel, launch


def main() -> None:
    """One JSON line per distinct launch and architecture."""
    seen = set()
    for name, kernel, launch in launches():
        source = source_of(kernel, launch["bound"]).hash() + str(launch["options"])
        measured = MEASURED.get(name.partition(" ")[0])
        constants = {k: str(v) for k, v in launch["bound"].items() if k.isupper()}
        named = {"name": name, "kernel": kernel.fn.__name__, "constants": constants}
        for arch in [measured] if measured else ARCHS:
            if (source, arch) in seen:
                continue
            seen.add((source, arch))
            found = compile_for(kernel, launch, arch)
            result = {**named, "arch": arch, "measured": measured is not None, **found}
            sys.stdout.write(json.dumps(result) + "\n")


if __name__ == "__main__":
    main()
