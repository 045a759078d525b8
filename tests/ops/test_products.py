"""Gram matrices and cross products of operands: patches, selected rows, far offsets.

A float32 sum of n products is wrong by at most n 2^-24 of the sum of their absolute values; native
runs have at most 512 samples.
"""

from __future__ import annotations

import tempfile

import numpy as np
import pytest
import torch

from hetmerge.ops import Moments
from hetmerge.ops.operand import Operand, columns_last, constant, patches, selected
from hetmerge.ops.products import cross, gram
from hetmerge.reference import moments as reference

RUN = 512 * 2.0**-24
BACKENDS = ["native", "torch"]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize(
    ("kernel", "stride", "dilation", "groups", "share"),
    [
        ((3, 3), (1, 1), (1, 1), 1, 1.0),
        ((3, 2), (2, 1), (1, 2), 2, 0.4),
        ((1, 1), (1, 1), (1, 1), 6, 1),
    ],
)
def test_products_of_patches(backend, dtype, kernel, stride, dilation, groups, share) -> None:  # noqa: ANN001
    x = torch.randn(4, 6, 11, 9, generator=torch.Generator().manual_seed(0)).to(dtype)
    sizes = zip(x.shape[2:], kernel, stride, dilation, strict=True)
    grid = [(n - d * (k - 1) - 1) // s + 1 for n, k, s, d in sizes]
    count = grid[0] * grid[1]
    positions = torch.arange(count)[: int(count * share)]
    target = torch.randn(4 * len(positions), 5, generator=torch.Generator().manual_seed(1))
    for operand in patches(x, kernel, stride, dilation, positions, grid, groups):
        joint = [operand, constant(x.new_ones(1), len(target))]
        dense = torch.cat([operand.dense().double(), torch.ones(len(target), 1)], 1)
        tolerance = 1e-12 if dtype == torch.float64 else RUN
        found = gram(joint, backend)
        error = (found - dense.T @ dense).abs() / (dense.abs().T @ dense.abs())
        assert float(error.max()) <= tolerance
        assert torch.equal(found, found.T)
        wide = target.double()
        found = cross(joint, [columns_last(target)], backend)
        error = (found - dense.T @ wide).abs() / (dense.abs().T @ wide.abs())
        assert float(error.max()) <= tolerance


def test_products_of_selected_rows_and_of_none() -> None:
    x = torch.randn(50, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    rows = torch.tensor([3, 3, 49, 0])
    found = gram([selected(x[:, ::2], rows)])
    torch.testing.assert_close(found, x[rows, ::2].T @ x[rows, ::2], rtol=1e-12, atol=1e-12)
    assert torch.equal(gram([selected(x, rows[:0])]), torch.zeros(7, 7, dtype=torch.float64))
    nothing = cross([selected(x, rows[:0])], [selected(x[:, :0], rows[:0])])
    assert nothing.shape == (7, 0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_offsets_beyond_32_bits(dtype: torch.dtype) -> None:
    """Three samples and two features spread over 3 * 2^32 elements of a sparse file."""
    step = 2**32
    with tempfile.TemporaryFile() as file:
        entries = 2 * step + 2 * 2**20 + 1
        file.truncate(entries * (torch.finfo(dtype).bits // 8))
        kind = np.float32 if dtype == torch.float32 else np.float64
        memory = np.memmap(file, dtype=kind, mode="r+", shape=(entries,))
        flat = torch.from_numpy(memory)
        dense = torch.tensor([[1.0, 2.0], [3.0, 5.0], [-4.0, 7.0]], dtype=dtype)
        spread = flat.as_strided((3, 2), (step, 2**20))
        spread.copy_(dense)
        samples, features = torch.arange(3) * step, torch.arange(2) * 2**20
        operand = Operand(flat, samples, features, step, 2**20)
        expected = dense.double().T @ dense.double()
        assert torch.equal(gram([operand]), expected)
        assert torch.equal(cross([operand], [operand]), expected)
        found = Moments([2]).update(spread)
        torch.testing.assert_close(
            found.covariance(), reference.covariance(dense.double()), rtol=1e-6, atol=1e-6
        )
        del spread, flat, operand, memory
