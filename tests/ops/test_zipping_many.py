"""Zip of many spaces at once, on any number of threads, in rounds and on a GPU."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from zipping_cases import FIXED, correlations, problems

from hetmerge import _native
from hetmerge.errors import InputError
from hetmerge.ops import zip_match, zip_match_info, zip_match_many
from hetmerge.ops.native import view
from hetmerge.reference import zipping as reference


@settings(FIXED, max_examples=50)
@given(found=st.lists(problems(), min_size=1, max_size=4), threads=st.sampled_from([1, 2, 5]))
def test_many_spaces_on_any_number_of_threads(found: list[Any], threads: int) -> None:
    torch.set_num_threads(threads)
    alpha, beta = found[0][3:]
    one_dtype = [matrix.astype(np.float32) for matrix, *_ in found]
    sizes, widths = [p[1] for p in found], [p[2] for p in found]
    together = zip_match_many(one_dtype, sizes, widths, alpha, beta)
    for result, matrix, shape, width in zip(together, one_dtype, sizes, widths, strict=True):
        alone = reference.zip_match(matrix, shape, width, alpha, beta)
        assert result.labels.tolist() == alone.labels.tolist()
        assert result.heights.tolist() == alone.heights.tolist()
        assert result.relaxed == alone.relaxed


@FIXED
@given(found=st.lists(problems(), min_size=1, max_size=3))
def test_rounds_of_the_gpu_give_the_same_labels(found: list[Any]) -> None:
    """The logic of the CUDA backend over plain loops instead of kernels."""
    alpha = min(found[0][3], 1.0)
    matrices = [torch.from_numpy(matrix.astype(np.float32)) for matrix, *_ in found]
    sizes, widths = [p[1] for p in found], [p[2] for p in found]
    budgets = [
        [math.floor((sum(s) - w) * d // sum(s) * found[0][4] + 1e-4) for d in s]
        for s, w in zip(sizes, widths, strict=True)
    ]
    views = [view(matrix) for matrix in matrices]
    results = _native.zip_in_rounds(views, sizes, budgets, widths, alpha)
    for result, matrix, shape, width in zip(results, matrices, sizes, widths, strict=True):
        wanted = reference.zip_match(matrix.numpy(), shape, width, alpha, found[0][4])
        if result is None:
            assert wanted.relaxed or wanted.heights.min() <= 0
        else:
            assert result[0].tolist() == wanted.labels.tolist()
            assert result[1].tolist() == wanted.heights.tolist()


@pytest.mark.parametrize("beta", [0.0, 0.125, 1.0])
@pytest.mark.parametrize("sizes", [[40, 30], [25, 20, 15], [60]])
def test_rounds_on_correlations(sizes: list[int], beta: float) -> None:
    matrix = correlations(np.random.default_rng(1), sizes, np.float32)
    total, width = sum(sizes), max(sizes) // 2
    budgets = [math.floor((total - width) * d // total * beta + 1e-4) for d in sizes]
    (found,) = _native.zip_in_rounds(
        [view(torch.from_numpy(matrix))], [sizes], [budgets], [width], 0.5
    )
    wanted = reference.zip_match(matrix, sizes, width, 0.5, beta)
    assert found is None or found[0].tolist() == wanted.labels.tolist()
    assert found is not None or wanted.relaxed or wanted.heights.min() <= 0


@pytest.mark.gpu
@settings(FIXED, max_examples=60)
@given(found=st.lists(problems(), min_size=1, max_size=4))
def test_cuda_gives_the_same_labels(found: list[Any]) -> None:
    alpha, beta = found[0][3:]
    matrices = [torch.from_numpy(matrix.astype(np.float32)) for matrix, *_ in found]
    sizes, widths = [p[1] for p in found], [p[2] for p in found]
    cpu = zip_match_many(matrices, sizes, widths, alpha, beta)
    gpu = zip_match_many([m.cuda() for m in matrices], sizes, widths, alpha, beta, "cuda")
    for one, other in zip(cpu, gpu, strict=True):
        assert torch.equal(one.labels, other.labels.cpu())
        assert torch.equal(one.heights, other.heights.cpu())


@pytest.mark.gpu
def test_cuda_at_size_and_with_bad_values() -> None:
    matrix = torch.from_numpy(correlations(np.random.default_rng(0), [1024, 1024], np.float32))
    found = zip_match_info(matrix.cuda(), [1024, 1024], backend="cuda")
    assert found.algorithm == "rounds"
    assert torch.equal(found.labels.cpu(), zip_match(matrix, [1024, 1024]))
    matrix[5, 7] = float("nan")
    with pytest.raises(InputError, match="NaN"):
        zip_match(matrix.cuda(), [1024, 1024], backend="cuda")


def test_nothing_is_written_before_every_space_is_checked() -> None:
    slightly = torch.from_numpy(correlations(np.random.default_rng(0), [3, 3], np.float32))
    slightly[0, 1] += 1e-6
    before, bad = slightly.clone(), torch.full((2, 2), float("nan"))
    with pytest.raises(InputError, match="NaN"):
        zip_match_many([slightly, bad], [[3, 3], [2]], overwrite=True)
    assert torch.equal(slightly, before)


def test_no_spaces_at_all() -> None:
    assert zip_match_many([], []) == []
    with pytest.raises(InputError, match="sizes and widths: got 1 and 2 for 1"):
        zip_match_many([np.eye(2)], [[2]], [1, 1])


def test_large_matrix_on_any_number_of_threads() -> None:
    matrix = correlations(np.random.default_rng(0), [150, 120], np.float32)
    found = []
    for threads in (1, 2, 5):
        torch.set_num_threads(threads)
        found.append(zip_match_info(matrix, [150, 120]))
    assert all(torch.equal(found[0].labels, other.labels) for other in found[1:])
    assert all(torch.equal(found[0].heights, other.heights) for other in found[1:])
