"""Products with weights that are no `linear`."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import hetmerge as hm
from hetmerge.layers import find_layers
from hetmerge.tracing import export

Product = Callable[[Tensor, Tensor], Tensor]

TRANSPOSED: dict[str, Product] = {
    "T": lambda x, w: x @ w.T,
    "t": lambda x, w: torch.matmul(x, w.t()),
    "mT": lambda x, w: x @ w.mT,
    "transpose": lambda x, w: x @ w.transpose(-2, -1),
    "permute": lambda x, w: x @ w.permute(1, 0),
    "mm": lambda x, w: torch.mm(x, w.T),
    "by name": lambda x, w: torch.matmul(x, other=w.T),
}


class Net(nn.Module):
    """Two layers; weights are [out, in] where `product` turns them, [in, out] elsewhere."""

    def __init__(self, product: Product, width: int, turned: bool = True):
        super().__init__()
        self.first = nn.Parameter(torch.randn(*((width, 4) if turned else (4, width))))
        self.last = nn.Parameter(torch.randn(*((3, width) if turned else (width, 3))))
        self.product = product

    def forward(self, x: Tensor) -> Tensor:
        return self.product(torch.relu(self.product(x, self.first)), self.last)


@pytest.mark.parametrize("name", TRANSPOSED)
def test_a_product_with_a_transpose_is_a_linear_map(name: str) -> None:
    net, x = Net(TRANSPOSED[name], 6).eval(), torch.randn(5, 4)
    program = export(net, x)
    assert [(layer.weight, layer.transposed) for layer in find_layers(program)] == [
        ("first", False),
        ("last", False),
    ]
    torch.testing.assert_close(program.module()(x), net(x))


@pytest.mark.parametrize("turned", [True, False])
@pytest.mark.parametrize("shape", [(64, 4), (16, 5, 4)])
def test_they_are_solved_for(turned: bool, shape: tuple[int, ...]) -> None:
    """A net beside itself under a permutation, in double precision, refitted: itself."""
    torch.manual_seed(0)
    product = TRANSPOSED["T"] if turned else torch.matmul
    one, other = (Net(product, 6, turned).double().eval() for _ in range(2))
    order = torch.randperm(6)
    with torch.no_grad():
        for mine, own, hidden in ((other.first, one.first, 0), (other.last, one.last, 1)):
            mine.copy_(own.index_select(hidden if turned else 1 - hidden, order))
    batches = [torch.randn(shape, dtype=torch.float64) for _ in range(4)]
    result = hm.merge([one, other], batches, match="permute", progress=False)
    assert result.report.fits
    assert not result.report.left_out
    with torch.no_grad():
        torch.testing.assert_close(result.model(batches[0]), one(batches[0]))
