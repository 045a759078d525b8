"""Linear sum assignment against SciPy."""

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment as scipy_assignment

from hetmerge.ops import linear_sum_assignment


@pytest.mark.parametrize("implementation", ["hetmerge", "scipy"])
@pytest.mark.parametrize("shape", [(1, 512, 512), (64, 64, 64)], ids=str)
def test_assignment(measure, shape, implementation):
    score = torch.randn(shape, generator=torch.Generator().manual_seed(0))

    def ours():
        return linear_sum_assignment(score)[1].numpy()

    def scipy():
        return np.stack([scipy_assignment(one, maximize=True)[1] for one in score.numpy()])

    np.testing.assert_array_equal(ours(), scipy())
    measure({"hetmerge": ours, "scipy": scipy}[implementation], f"assignment {shape}")
