"""Tuning and sweep of the GPU kernels: `python gpu_sweep.py OUTDIR`, or `gpu.sh` for everything.

Writes block shapes to OUTDIR/configs, the table to OUTDIR/<device>.csv and OUTDIR/roofline.png.
A case that fails is named at the end and in the exit status; the others are kept.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

import rows
import torch
from rows import Roofs, Timing

from hetmerge.kernels import tuning

Config = dict[str, Any]

TILES = [(64, 64, 64, 4, 3), (128, 128, 64, 8, 3), (128, 128, 64, 8, 4), (128, 128, 64, 4, 3),
         (128, 256, 64, 8, 3)]  # fmt: skip
WIDE = [(64, 64, 32, 4, 3), (128, 64, 32, 4, 3), (128, 128, 32, 8, 3)]
SHAPES = {
    "half": [(*tile, "ieee", stage) for stage in (False, True) for tile in TILES],
    "float32": [(*WIDE[0], "tf32x3", False), (*WIDE[1], "tf32x3", False),
                (*WIDE[2], "tf32x3", False), (*WIDE[2], "tf32x3", True),
                (*WIDE[1], "ieee", False), (*WIDE[2], "ieee", False)],
}  # fmt: skip
MOMENT_KEYS = ("BM", "BN", "BT", "warps", "stages", "precision", "stage")
DTYPES = {"half": torch.bfloat16, "float32": torch.float32}


def tune_moments(bench: Callable[..., Any], cases: Any) -> Iterator[Mapping[str, Any]]:
    for name, shapes in SHAPES.items():
        configs = [dict(zip(MOMENT_KEYS, shape, strict=True)) for shape in shapes]
        for width in (1024, 4096, 8192):
            problem = cases.MomentsProblem(width, DTYPES[name])
            most = 2e-2 if name == "half" else 1e-5

            def cost(config: Config, problem: Any = problem, most: float = most) -> float:
                cases.require(problem.error(config), most, str(config))
                return float(bench(lambda: problem.run(config), rep=20)[1])

            yield {"dtype": name, "size": width, "config": best(configs, cost)}


def tune_similarity(bench: Callable[..., Any], cases: Any) -> Iterator[Mapping[str, Any]]:
    from hetmerge.kernels import launch_grams

    for name, precisions in (("half", ["ieee"]), ("float32", ["tf32x3", "ieee"])):
        configs = [
            {"BN": bn, "BD": bd, "warps": warps, "stages": 3, "precision": precision}
            for bn, bd, warps in ((64, 64, 4), (64, 32, 4), (128, 32, 8), (128, 64, 8))
            for precision in precisions
        ]
        for samples in (256, 1024):
            features = [
                torch.randn(samples, 2048, device="cuda").to(DTYPES[name]) for _ in range(32)
            ]

            def cost(config: Config, features: Any = features) -> float:
                return float(bench(lambda: launch_grams(features, config), rep=20)[1])

            yield {"dtype": name, "size": samples, "config": best(configs, cost)}


def tune_project(bench: Callable[..., Any], cases: Any) -> Iterator[Mapping[str, Any]]:
    for width in (1024, 4096, 8192, 16384):
        problem = cases.ProjectProblem((2048, width), torch.bfloat16)
        configs = [
            {"entries": entries, "warps": warps}
            for entries in (width, 2 * width)
            for warps in (4, 8, 16, 32)
            if entries // (32 * warps) in (4, 8, 16, 32)
        ]

        def cost(config: Config, problem: Any = problem) -> float:
            return float(bench(lambda: problem.run(config), rep=20)[1])

        yield {"dtype": "any", "size": width, "config": best(configs, cost)}


def best(configs: Sequence[Config], cost: Callable[[Config], float]) -> Config:
    """The fastest; a config that the device cannot hold is passed over."""
    costs = []
    for config in configs:
        try:
            costs.append((cost(config), config))
        except Exception as error:
            print(f"  {config}: {type(error).__name__}: {str(error)[:200]}", flush=True)
    if not costs:
        raise RuntimeError("no config runs")
    costs.sort(key=lambda pair: pair[0])
    print("  " + "; ".join(f"{ms:.3f} ms {list(c.values())}" for ms, c in costs[:3]), flush=True)
    return costs[0][1]


def sweep_cases(cases: Any) -> Mapping[str, Sequence[Callable[[], Iterator[Timing]]]]:
    """Per operation, what is timed."""
    half, full = torch.bfloat16, torch.float32
    return {
        "moments": [
            *(lambda d=d: cases.moments(d, half) for d in (1024, 2048, 4096, 8192, 16384)),
            *(lambda d=d: cases.moments(d, full) for d in (1024, 4096, 8192)),
        ],
        "project": [
            *(lambda t=t: cases.project((4096, 4096), t) for t in (full, half)),
            lambda: cases.project((14336, 4096), half),
            lambda: cases.project((4096, 14336), half),
            lambda: cases.project((512, 512, 3, 3), full),
        ],
        "similarity": [
            lambda: cases.similarity(32, 256, 2048, full),
            lambda: cases.similarity(32, 256, 2048, half),
        ],
        "assignment": [
            *(lambda b=b, n=n: cases.assignment(b, n) for b, n in ((256, 64), (1024, 128))),
            lambda: cases.assignment(2048, 64),
        ],
        "zipping": [
            *(lambda s=s: cases.zipping(s) for s in ((1024, 1024), (4096, 4096))),
            lambda: cases.zipping((14336, 8192)),
        ],
    }


TUNERS = {"moments": tune_moments, "similarity": tune_similarity, "project": tune_project}


def measured_roofs(bench: Callable[..., Any]) -> Roofs:
    """A copy of 4 GB and products of 8192 x 8192 matrices."""
    source = torch.zeros(1 << 32, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    bandwidth = 2 * source.numel() / bench(lambda: target.copy_(source))[0] * 1e3
    flops = {}
    for dtype in (torch.float32, torch.bfloat16):
        a = torch.randn(8192, 8192, device="cuda").to(dtype)
        seconds = bench(lambda a=a: a @ a)[0] / 1e3
        flops[str(dtype).removeprefix("torch.")] = 2 * 8192**3 / seconds
    return Roofs(bandwidth, flops)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("outdir", type=Path)
    known = ["assignment", "zipping", "project", "similarity", "moments"]
    parser.add_argument("--ops", nargs="+", default=known)
    parser.add_argument("--seconds", type=float, default=250, help="no case starts after these")
    parser.add_argument("--no-tuning", action="store_true")
    given = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        print("gpu_sweep: torch sees no CUDA device", file=sys.stderr)
        return 2
    import gpu_cases as cases

    deadline = time.monotonic() + given.seconds
    given.outdir.mkdir(parents=True, exist_ok=True)
    device = rows.device_name("cuda")
    configs = given.outdir / "configs"
    shutil.copytree(tuning.CONFIGS, configs, dirs_exist_ok=True)
    tuning.CONFIGS = configs
    roofs = measured_roofs(cases.bench)
    print(f"{device}: {roofs}", flush=True)
    timings: list[Timing] = []
    failed: list[str] = []
    everything = sweep_cases(cases)

    def attempt(name: str, action: Callable[[], None]) -> None:
        if time.monotonic() > deadline:
            failed.append(f"{name} (no time left)")
            return
        try:
            action()
        except Exception:
            traceback.print_exc()
            failed.append(name)
        torch.cuda.empty_cache()

    def tune(op: str) -> None:
        found = list(TUNERS[op](cases.bench, cases))
        path = configs / tuning.file_name(op, device)
        path.write_text("[\n  " + ",\n  ".join(map(json.dumps, found)) + "\n]\n")
        tuning._table.cache_clear()

    def case(run: Callable[[], Iterator[Timing]]) -> None:
        for timing in run():
            timings.append(timing)
            print(f"  {timing.case}, {timing.implementation}: {timing.p50:.3f} ms", flush=True)

    for op in given.ops:
        print(op, flush=True)
        if op in TUNERS and not given.no_tuning:
            attempt(f"tuning of {op}", lambda op=op: tune(op))
        for k, run in enumerate(everything[op]):
            attempt(f"{op} case {k}", lambda run=run: case(run))
        table = given.outdir / f"{rows.slug(device)}.csv"
        rows.save(rows.rows_of(timings, roofs, device, 1), table)
    from gpu_picture import draw

    attempt("picture", lambda: draw(timings, roofs, device, given.outdir / "roofline.png"))
    for name in failed:
        print(f"failed: {name}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
