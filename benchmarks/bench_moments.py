"""Streaming moments against one full matrix product of the concatenated features."""

import pytest
import torch

from hetmerge.ops import Moments


def full_product(features, dim):
    """Raw second moments the usual way: concatenate, permute, multiply the whole matrix."""
    joint = torch.cat(features, dim).movedim(dim, 0).flatten(1)
    return joint @ joint.T


@pytest.mark.parametrize("implementation", ["hetmerge", "torch matmul"])
@pytest.mark.parametrize(
    ("shape", "width"), [((4096,), 512), ((16, 14, 14), 512), ((4096,), 1024)], ids=str
)
def test_update(measure, shape, width, implementation):
    rng = torch.Generator().manual_seed(0)
    shape = (shape[0], width, *shape[1:])
    features = [torch.randn(shape, generator=rng) for _ in range(2)]
    moments = Moments([width, width]).update(*features)
    count = features[0].numel() // width
    joint = torch.cat(features, 1).movedim(1, 0).flatten(1).double()
    expected = torch.cov(joint, correction=0)
    torch.testing.assert_close(moments.covariance(), expected, rtol=1e-5, atol=1e-5)

    def ours():
        return Moments([width, width]).update(*features)

    run = {"hetmerge": ours, "torch matmul": lambda: full_product(features, 1)}
    measure(run[implementation], f"moments {shape}", flops=count * 2 * width * (2 * width + 1))
