"""Settings shared by all benchmarks."""

import os

import pytest
import torch


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    """Ratios on shared machines are steadier on one core; HETMERGE_BENCH_THREADS sets another."""
    torch.set_num_threads(int(os.environ.get("HETMERGE_BENCH_THREADS", "1")))


@pytest.fixture
def measure(benchmark):
    """Run a function a few times in the group of its problem and return its result."""

    def run(function, group, rounds=3, **info):
        benchmark.group = group
        benchmark.extra_info.update(info)
        return benchmark.pedantic(function, rounds=rounds, warmup_rounds=1)

    return run
