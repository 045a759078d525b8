"""Depth alignment against exhaustive search."""

import numpy as np
import pytest

from hetmerge.ops import align_depth
from hetmerge.reference import segments as reference

IMPLEMENTATIONS = {"hetmerge": align_depth, "exhaustive": reference.align_depth}


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("objective", ["segment", "layer"])
def test_align_depth(measure, objective, implementation):
    table = np.random.default_rng(0).integers(0, 9, (16, 8)) / 8
    results = [function(table, objective, "end") for function in IMPLEMENTATIONS.values()]
    assert results[0] == results[1]
    run = IMPLEMENTATIONS[implementation]
    measure(lambda: run(table, objective, "end"), f"align {objective} 16 x 8", implementation)
