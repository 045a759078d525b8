"""Projection by labels against dense matrices, torch's indexed operations and a copy."""

from functools import lru_cache

import pytest
import torch

from hetmerge import _native
from hetmerge.ops import project
from hetmerge.ops.native import threads, view

# Largest difference from float64 over the largest entry: some roundings of float32; a few of
# bfloat16, to which the baselines round after every step.
GATE = {torch.float32: 1e-5, torch.bfloat16: 3e-2}


class Problem:
    """Two parents of one shape.

    "random": independent labels; a seventh of the merged rows and columns stays empty. "related":
    the first parent keeps its places and the second is permuted. "transposed": the same, with the
    columns apart in memory.
    """

    def __init__(self, shape, kind, dtype):
        rng = torch.Generator().manual_seed(0)
        self.rows, self.cols = shape[:2]
        self.weights = [torch.randn(shape, generator=rng).to(dtype) for _ in range(2)]
        if kind == "transposed":
            self.weights = [weight.T.contiguous().T for weight in self.weights]
        self.labels = []  # per axis, per parent
        for size in shape[:2]:
            if kind == "random":
                self.labels.append([torch.randint(size, (size,), generator=rng) for _ in range(2)])
            else:
                self.labels.append([torch.arange(size), torch.randperm(size, generator=rng)])
        self.count = torch.bincount(torch.cat(self.labels[0]), minlength=self.rows).clamp(min=1)
        self.column = (-1, *[1] * (len(shape) - 1))  # a factor per row in this shape
        self.share = (1 / self.count).to(dtype).reshape(self.column)
        self.mapped = torch.zeros_like(self.weights[0])
        self.exact = torch.zeros(shape, dtype=torch.float64)
        for weight, row, col in self.parents():
            part = weight / self.count.double()[row].reshape(self.column)
            self.exact.index_add_(0, row, torch.zeros_like(part).index_add_(1, col, part))

    def parents(self):
        return zip(self.weights, *self.labels, strict=True)

    def matrices(self):
        """Per parent M and U^T."""
        for _, row, col in self.parents():
            yield torch.eye(self.rows)[row].T / self.count[:, None], torch.eye(self.cols)[col].T

    def hetmerge(self):
        return project(self.weights, *self.labels, self.rows, self.cols)

    def hetmerge_mapped(self):
        """The result lies in memory that is there already, as that of the copy."""
        parts = [[view(x) for x in each] for each in (self.weights, *self.labels)]
        _native.project(*parts, [1.0, 1.0], view(self.mapped), threads())
        return self.mapped

    def index_add(self):
        out = torch.zeros_like(self.weights[0])
        for weight, row, col in self.parents():
            out.index_add_(1, col, torch.zeros_like(weight).index_add_(0, row, weight))
        return out.mul_(self.share)

    def index_select(self):
        moved = [
            weight.index_select(0, row.argsort()).index_select(1, col.argsort())
            for weight, row, col in self.parents()
        ]
        return moved[0].add_(moved[1]).mul_(self.share)


COPIES = ("copy", "sum into fresh memory")
ROUNDS = {"dense matrices": 1, "sparse matrices": 1}


@lru_cache(maxsize=1)
def implementations(shape, kind, dtype):
    problem = Problem(shape, kind, dtype)
    found = {
        "hetmerge": problem.hetmerge,
        "hetmerge, result mapped before": problem.hetmerge_mapped,
        "index_add_": problem.index_add,
    }
    if kind != "random":
        found["index_select"] = problem.index_select
    if len(shape) == 2 and kind == "random" and dtype == torch.float32:
        dense = list(problem.matrices())
        sparse = [(m.to_sparse(), u.to_sparse()) for m, u in dense]
        found["dense matrices"] = lambda: sum(
            torch.einsum("ru,uc,dc->rd", m, w, u)
            for (m, u), w in zip(dense, problem.weights, strict=True)
        )
        found["sparse matrices"] = lambda: sum(
            torch.sparse.mm(u, torch.sparse.mm(m, w).T).T
            for (m, u), w in zip(sparse, problem.weights, strict=True)
        )
    # The roof: as many bytes read and written, by the largest plain operations there are.
    moved = torch.zeros(3 * problem.exact.numel() // 2, dtype=dtype)
    target = torch.zeros_like(moved)
    found["copy"] = lambda: target.copy_(moved)
    found["sum into fresh memory"] = lambda: problem.weights[0] + problem.weights[1]
    return found, problem.exact


SQUARES = [512, 1024, 2048, 4096]
CASES = [
    *(((width, width), "random", torch.float32) for width in SQUARES),
    ((4096, 4096), "related", torch.float32),
    ((4096, 4096), "transposed", torch.float32),
    ((4096, 4096), "random", torch.bfloat16),
    ((4096, 4096), "related", torch.bfloat16),
    ((512, 512, 3, 3), "random", torch.float32),
    ((512, 512, 3, 3), "related", torch.float32),
]


def names(shape, kind, dtype):
    found = ["hetmerge", "hetmerge, result mapped before", "index_add_", *COPIES]
    found += [] if kind == "random" else ["index_select"]
    plain = len(shape) == 2 and kind == "random" and dtype == torch.float32
    return found + (["dense matrices", "sparse matrices"] if plain else [])


@pytest.mark.parametrize(
    ("shape", "kind", "dtype", "implementation"),
    [(*case, name) for case in CASES for name in names(*case)],
)
def test_project(measure, shape, kind, dtype, implementation):
    found, exact = implementations(shape, kind, dtype)
    run, error = found[implementation], None
    if implementation not in COPIES:
        error = float((run().double() - exact).abs().max() / exact.abs().max())
        assert error < GATE[dtype]
    name = str(dtype).removeprefix("torch.")
    measure(
        run,
        f"project {'x'.join(map(str, shape))} {kind} {name}",
        implementation,
        rounds=ROUNDS.get(implementation, 15),
        warmup=0 if implementation in ROUNDS else 1,
        bytes=3 * exact.numel() * dtype.itemsize,
        dtype=name,
        error=error,
    )
