"""Cases of the GPU sweep: what is computed, what it is compared with, what it counts at least.

A case yields its timings. Each checks the result against float64 before anything is timed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from time import perf_counter
from typing import Any

import torch
import triton
from rows import Timing
from scipy.optimize import linear_sum_assignment as scipy_assignment
from torch import Tensor

from hetmerge import ops
from hetmerge.kernels import launch_centre, launch_grams, launch_moments, launch_project
from hetmerge.ops.operand import columns_last

TOKENS = 8192
PANEL = 128


def bench(function: Callable[[], object], rep: int = 60) -> tuple[float, float, float]:
    """Milliseconds at the 20th, 50th and 80th percentile, second-level cache cold."""
    found = triton.testing.do_bench(function, warmup=10, rep=rep, quantiles=[0.2, 0.5, 0.8])
    return tuple(float(value) for value in found)


def timed(case: str, runs: Mapping[str, Callable[[], object]], **counted: Any) -> Iterator[Timing]:
    for name, run in runs.items():
        yield Timing(case, name, *bench(run), **counted)


def relative(found: Tensor, expected: Tensor) -> float:
    """Largest difference over the largest entry."""
    return float((found.double() - expected).abs().max() / expected.abs().max())


def require(error: float, most: float, case: str) -> float:
    if not error <= most:
        raise AssertionError(f"{case}: error {error:.2e}, allowed is {most:.0e}")
    return error


def name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


class MomentsProblem:
    """Two parents of width / 2 features each over TOKENS tokens."""

    def __init__(self, width: int, dtype: torch.dtype) -> None:
        torch.manual_seed(0)
        self.width, self.dtype = width, dtype
        self.features = [
            (torch.randn(TOKENS, width // 2, device="cuda") + 2).to(dtype) for _ in range(2)
        ]
        self.operands = [columns_last(x) for x in self.features]
        self.joint = torch.cat(self.features, 1)
        self.pivot = self.joint.float().mean(0)
        entries = sum(min(PANEL, width - p) * (width - p) for p in range(0, width, PANEL))
        self.product = torch.zeros(entries, dtype=torch.float64, device="cuda")

    def run(self, config: Mapping[str, Any] | None = None) -> None:
        launch_moments(self.operands, self.pivot, self.product, config)

    def error(self, config: Mapping[str, Any] | None = None) -> float:
        """Of one update, over the rows of the first panel."""
        self.product.zero_()
        self.run(config)
        centred = self.joint.double() - self.pivot.double()
        expected = centred[:, :PANEL].T @ centred
        return relative(self.product[: expected.numel()].view_as(expected), expected)


def moments(width: int, dtype: torch.dtype) -> Iterator[Timing]:
    case = f"moments {name_of(dtype)} {width} x {TOKENS}"
    problem = MomentsProblem(width, dtype)
    half = dtype != torch.float32
    error = require(problem.error(), 2e-2 if half else 1e-5, case)
    joint, pair = problem.joint, problem.features
    wide = joint.float()
    steady = ops.Moments([width // 2] * 2).update(*pair)  # a first batch costs more
    runs: dict[str, Callable[[], object]] = {
        "hetmerge": problem.run,
        "hetmerge Moments": lambda: steady.update(*pair),
        "published, float32": lambda: (x := torch.cat(pair, 1).float().T.contiguous()) @ x.T,
        "cuBLAS float32": lambda: wide.T @ wide,
    }
    if half:
        runs["cuBLAS, float32 out"] = lambda: torch.mm(joint.T, joint, out_dtype=torch.float32)
    yield from timed(
        case,
        runs,
        flops=TOKENS * width * (width + 1),
        bytes=joint.element_size() * TOKENS * width + 16 * width * (width + 1) / 2,
        dtype=name_of(dtype),
        error=error,
    )


def similarity(layers: int, samples: int, width: int, dtype: torch.dtype) -> Iterator[Timing]:
    case = f"cka {name_of(dtype)} {layers} x {layers} layers, {samples} x {width}"
    torch.manual_seed(0)
    sides = [
        [(torch.randn(samples, width, device="cuda") + 1).to(dtype) for _ in range(layers)]
        for _ in range(2)
    ]

    def ours() -> Tensor:
        grams = launch_centre(launch_grams([*sides[0], *sides[1]])).flatten(1)
        return grams[:layers] @ grams[layers:].T

    def one_product() -> Tensor:
        flat = [torch.stack([centred(x.float()) for x in side]).flatten(1) for side in sides]
        return flat[0] @ flat[1].T

    def centred(x: Tensor) -> Tensor:
        gram = x @ x.T
        gram.fill_diagonal_(0.0)
        mean = gram.sum(1) / (samples - 2)
        gram = gram - mean[:, None] - mean[None, :] + mean.sum() / (samples - 1)
        return gram.fill_diagonal_(0.0)

    def pairs() -> list[Tensor]:
        return [hsic(x.float(), y.float()) for x in sides[0] for y in sides[1]]

    def hsic(x: Tensor, y: Tensor) -> Tensor:
        k, m = x @ x.T, y @ y.T
        k.fill_diagonal_(0.0)
        m.fill_diagonal_(0.0)
        product = k @ m
        value = product.trace() + k.sum() * m.sum() / ((samples - 1) * (samples - 2))
        return value - 2 * product.sum() / (samples - 2)

    flat = [torch.stack([centred(x.double()) for x in side]).flatten(1) for side in sides]
    error = require(relative(ours(), flat[0] @ flat[1].T), 3e-2, case)
    runs: dict[str, Callable[[], object]] = {
        "hetmerge": ours,
        "hetmerge cka": lambda: ops.cka(*sides),
        "HSIC per pair": pairs,
        "torch, one product": one_product,
    }
    yield from timed(
        case,
        runs,
        flops=2 * layers * samples * (samples + 1) * width + 2 * layers**2 * samples**2,
        bytes=2 * layers * samples * width * sides[0][0].element_size(),
        dtype=name_of(dtype),
        error=error,
    )


class ProjectProblem:
    """Two parents of one shape, half of whose clusters have a member in each."""

    def __init__(self, shape: tuple[int, ...], dtype: torch.dtype) -> None:
        torch.manual_seed(0)
        self.weights = [torch.randn(shape, device="cuda").to(dtype) for _ in range(2)]
        self.rows, self.cols = (self.labels(size) for size in shape[:2])
        members = torch.bincount(torch.cat(self.rows).long(), minlength=shape[0])
        self.factors = [1.0 / members[labels.long()].float() for labels in self.rows]
        self.out = torch.empty(shape, dtype=dtype, device="cuda")

    @staticmethod
    def labels(size: int) -> list[Tensor]:
        orders = [torch.arange(size), torch.randperm(size)]
        orders[1][: size // 4] = torch.randint(size, (size // 4,))
        return [order.int().cuda() for order in orders]

    def run(self, config: Mapping[str, Any] | None = None) -> Tensor:
        launch_project(self.weights, self.rows, self.cols, self.factors, self.out, config)
        return self.out

    def project(self, backend: str) -> Tensor:
        shape = self.out.shape[:2]
        return ops.project(self.weights, self.rows, self.cols, *shape, backend=backend)

    def added(self, dtype: torch.dtype) -> Tensor:
        total = torch.zeros(self.out.shape, dtype=dtype, device="cuda")
        for weight, rows, cols, factor in zip(
            self.weights, self.rows, self.cols, self.factors, strict=True
        ):
            scaled = weight.to(dtype) * factor.to(dtype).view(-1, *[1] * (weight.ndim - 1))
            total.index_add_(0, rows, torch.zeros_like(scaled).index_add_(1, cols, scaled))
        return total

    def dense(self) -> Tensor:
        def unit(labels: Tensor, size: int) -> Tensor:
            return torch.eye(size, device="cuda")[labels.long()]

        return sum(
            torch.einsum("ir,ij...,jc->rc...", unit(r, len(w)) * f[:, None], w.float(),
                         unit(c, w.shape[1]))
            for w, r, c, f in zip(self.weights, self.rows, self.cols, self.factors, strict=True)
        )  # fmt: skip


def project(shape: tuple[int, ...], dtype: torch.dtype) -> Iterator[Timing]:
    case = f"project {name_of(dtype)} {' x '.join(map(str, shape))}, two parents"
    problem = ProjectProblem(shape, dtype)
    half = dtype != torch.float32
    most = 1e-2 if half else 1e-5
    wanted = problem.added(torch.float64)
    error = require(relative(problem.project("auto"), wanted), most, case)
    count = problem.out.numel() * problem.out.element_size() * 3
    source = torch.empty(count // 2, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    yield from timed(
        case,
        {
            "hetmerge": lambda: problem.project("auto"),
            "hetmerge, Triton": lambda: problem.project("triton"),
            "index_add_": lambda: problem.added(torch.float32),
            "dense einsum": problem.dense,
            "copy of the same bytes": lambda: target.copy_(source),
        },
        bytes=count,
        dtype=name_of(dtype),
        error=error,
    )


def zipping(sizes: tuple[int, int]) -> Iterator[Timing]:
    width = sum(sizes)
    torch.manual_seed(0)
    latent = torch.randn(width, 64, device="cuda")
    features = latent @ torch.randn(64, 2048, device="cuda")
    features += 4 * torch.randn(width, 2048, device="cuda")
    similarity = torch.corrcoef(features)
    similarity = ((similarity + similarity.T) / 2).fill_diagonal_(1.0)
    if width <= 2048:
        found = ops.zip_match(similarity, sizes, backend="cuda").cpu()
        expected = ops.zip_match(similarity.cpu(), sizes, backend="reference")
        require(float((found != expected).sum()), 0, f"zip {width}")
    runs = {"hetmerge": lambda: ops.zip_match(similarity, sizes, backend="cuda")}
    yield from timed(f"zip {' + '.join(map(str, sizes))}", runs, bytes=4 * width**2)


def assignment(batch: int, size: int) -> Iterator[Timing]:
    case = f"assignment {batch} x {size} x {size}"
    torch.manual_seed(0)
    score = torch.randn(batch, size, size, device="cuda")
    host = score.cpu().numpy()
    start = perf_counter()
    with ThreadPoolExecutor() as pool:
        pairs = list(pool.map(lambda matrix: scipy_assignment(matrix, maximize=True), host))
    elapsed = 1e3 * (perf_counter() - start)
    best = torch.tensor([float(m[i, j].sum()) for m, (i, j) in zip(host, pairs, strict=True)])
    rows, cols = ops.linear_sum_assignment(score, backend="cuda")
    reached = score.cpu().gather(2, cols.cpu().unsqueeze(-1)).sum((1, 2))
    error = require(relative(reached, best.double()), 1e-5, case)
    runs = {"hetmerge": lambda: ops.linear_sum_assignment(score, backend="cuda")}
    yield from timed(case, runs, bytes=4 * score.numel(), error=error)
    yield Timing(case, "scipy, threads", elapsed, elapsed, elapsed)
