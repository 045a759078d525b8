"""Where features are looked at."""

import pytest
import torch
from torch import nn

import hetmerge as hm


class Summed(nn.Module):
    """Features that no layer reads, beside what is true of them."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Linear(4, width)

    def forward(self, x):
        y = self.first(x)
        return torch.where(y > 0, y, 0.1 * y).sum(-1, keepdim=True)


class Masked(Summed):
    """Features that no layer reads, half of them hidden behind a mask."""

    def forward(self, x):
        hidden = x[:, :1] > 0
        return self.first(x).masked_fill(hidden, float("-inf")).exp().sum(-1, keepdim=True)


@pytest.mark.parametrize("net", [Summed, Masked])
def test_neither_what_is_true_of_features_nor_a_mask_is_compared(net: type[Summed]) -> None:
    torch.manual_seed(0)
    parents = [net(width).double().eval() for width in (6, 8)]
    batches = list(torch.randn(64, 4, dtype=torch.float64).split(32))
    options = {"match": "permute", "refit": False, "progress": False}
    result = hm.merge(parents, batches, weights=[1, 0], **options)
    with torch.no_grad():
        torch.testing.assert_close(result.model(batches[0]), parents[0](batches[0]))
