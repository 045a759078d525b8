"""Settings shared by all benchmarks: threads, timing, the results table.

``--rows FILE``, or a folder for one file per machine, keeps the figures. HETMERGE_BENCH_THREADS
sets another number of threads than all. The neighbouring ``rows`` is loaded by its path because
this folder is not a package.
"""

import importlib.util
import os
import sys
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

_spec = importlib.util.spec_from_file_location("rows", Path(__file__).with_name("rows.py"))
rows = sys.modules["rows"] = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(rows)

THREADS = int(os.environ.get("HETMERGE_BENCH_THREADS", os.cpu_count() or 1))
TIMINGS: list[Any] = []


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--rows", type=Path, default=None, help="add this run to a CSV table")


@pytest.fixture(autouse=True)
def _threads() -> None:
    torch.set_num_threads(THREADS)


@pytest.fixture
def measure(benchmark) -> Callable[..., Any]:
    """Time one implementation of a case, and return what it returned.

    The test has compared its result with the reference before: no timing without a right answer.
    Baselines of the same case run in the same session; theirs are the names that do not begin with
    "hetmerge".

    measure(function, case, implementation, flops=, bytes=, dtype=, error=, rounds=): `flops` and
    `bytes` are the fewest the problem needs, `dtype` names the arithmetic, `error` is the largest
    difference from float64 relative to its largest entry.
    """

    def run(function, case, implementation="hetmerge", rounds=7, warmup=1, **counted):
        benchmark.group = case
        benchmark.extra_info.update(counted)
        result = benchmark.pedantic(function, rounds=rounds, warmup_rounds=warmup)
        if benchmark.stats is not None:
            times = torch.tensor(benchmark.stats.stats.data, dtype=torch.float64) * 1e3
            p20, p50, p80 = (float(times.quantile(q)) for q in (0.2, 0.5, 0.8))
            TIMINGS.append(rows.Timing(case, implementation, p20, p50, p80, **counted))
        return result

    return run


@cache
def roofs() -> Any:
    """Bandwidth of a copy and speed of large matrix products, on the threads in use."""
    torch.set_num_threads(THREADS)
    source = torch.ones(1 << 26)
    target = torch.empty_like(source)
    bandwidth = 2 * source.numel() * 4 / _best(lambda: target.copy_(source))
    flops = {}
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        emulated = dtype == torch.bfloat16 and not torch.ops.mkldnn._is_mkldnn_bf16_supported()
        side = 256 if emulated else 2048  # a large one would take minutes
        a = torch.randn(side, side).to(dtype)
        flops[str(dtype).removeprefix("torch.")] = 2 * side**3 / _best(lambda a=a: a @ a)
    return rows.Roofs(bandwidth, flops)


def _best(function: Callable[[], object]) -> float:
    times = []
    for _ in range(5):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return min(times)


def pytest_terminal_summary(terminalreporter, config: pytest.Config) -> None:
    if not TIMINGS:
        return
    found = rows.rows_of(TIMINGS, roofs(), rows.device_name("cpu"), THREADS)
    terminalreporter.write_line(rows.table(found))
    path = config.getoption("--rows")
    if path is not None:
        name = f"{rows.slug(rows.device_name('cpu'))}.csv"
        rows.save(found, path / name if path.is_dir() else path)
