"""Systems of rows give what systems of inputs give."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hetmerge.fewrows import FewRows
from hetmerge.leastsquares import Normal
from hetmerge.ops.operand import columns_last, constant


def fill(system, blocks, rows, inputs, outputs, bias, seed, dtype, mean=3.0):
    """Two batches of the same random problem."""
    random = torch.Generator().manual_seed(seed)
    for count in (rows - rows // 2, rows // 2):
        if not count:
            continue
        x = torch.randn(blocks, count, inputs, generator=random, dtype=torch.float64).to(dtype)
        x = x + mean
        t = torch.randn(1, blocks * outputs, count, generator=random, dtype=torch.float64)
        operands = [[columns_last(block)] for block in x]
        if bias:
            operands = [[*o, constant(x.new_ones(1), count)] for o in operands]
        system.add(operands, t.to(dtype))
    return system


@settings(max_examples=40, deadline=None)
@given(
    blocks=st.integers(1, 3),
    rows=st.integers(1, 9),
    inputs=st.integers(1, 12),
    outputs=st.integers(1, 4),
    bias=st.booleans(),
    ridge=st.sampled_from([1e-2, 1.0]),
    seed=st.integers(0, 1000),
)
def test_as_the_normal_equations(blocks, rows, inputs, outputs, bias, ridge, seed):
    problem = (blocks, rows, inputs, outputs, bias, seed, torch.float64)
    few, normal = fill(FewRows(), *problem), fill(Normal(), *problem)
    random = torch.Generator().manual_seed(seed + 1)
    shape = (blocks, inputs + bias, outputs)
    prior = torch.randn(shape, generator=random, dtype=torch.float64)
    found, wanted = few.solve(prior, ridge, bias), normal.solve(prior, ridge, bias)
    # The bias of the normal equations has a penalty of 1e-12, and their matrix the square of the
    # condition of X, some 10^4 here.
    torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-6)
    assert few.rows == normal.rows == rows
    if rows > 1:
        assert few.explained(found) == pytest.approx(normal.explained(found), abs=1e-8)


class Exact:
    """Normal equations of the same rows in float64."""

    def __init__(self):
        self.normal = Normal()

    def add(self, operands, target):
        wide = [[columns_last(o.dense().double()) for o in block] for block in operands]
        self.normal.add(wide, target.double())


def test_single_precision_rows():
    problem = (1, 50, 200, 7, True, 0, torch.float32)
    few, exact = fill(FewRows(), *problem), fill(Exact(), *problem).normal
    prior = torch.zeros(1, 201, 7, dtype=torch.float64)
    found, wanted = (system.solve(prior, 1e-2, True) for system in (few, exact))
    # Products of centred float32 inputs are good to some 2^-24 of their mean square of 1, over a
    # penalty of 0.1; the bias adds 200 weights times the mean of 3.
    torch.testing.assert_close(found[:, :-1], wanted[:, :-1], rtol=0, atol=1e-6)
    torch.testing.assert_close(found[:, -1], wanted[:, -1], rtol=0, atol=2e-5)
    assert few.explained(found) == pytest.approx(exact.explained(found), abs=1e-5)


def test_constant_inputs_and_targets():
    few = FewRows()
    x = torch.ones(4, 6, dtype=torch.float64)
    few.add([[columns_last(x), constant(x.new_ones(1), 4)]], torch.full((1, 2, 4), 5.0).double())
    weights = few.solve(torch.zeros(1, 7, 2, dtype=torch.float64), 1e-2, True)
    torch.testing.assert_close(weights[0, -1], torch.full((2,), 5.0, dtype=torch.float64))
    assert few.explained(weights) == 1.0
