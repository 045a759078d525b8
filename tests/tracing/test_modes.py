"""What a model's own code writes as numbers, read while it is exported."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import hetmerge as hm
from hetmerge.tracing import export
from hetmerge.tracing.exporting import place_on

Cut = Callable[[Tensor], tuple[Tensor, Tensor]]


class Cutting(nn.Module):
    """Three heads of eight features and one more, as keys are kept beside queries."""

    def __init__(self, cut: Cut):
        super().__init__()
        self.fused, self.last = nn.Linear(5, 32), nn.Linear(8, 5)
        self.cut = cut

    def forward(self, x: Tensor) -> Tensor:
        heads, one = self.cut(self.fused(x).unflatten(-1, (4, 8)))
        return self.last((heads * one).sum(-2))


RUNS: list[Cut] = [
    lambda y: (y[..., :-1, :], y[..., [-1], :]),
    lambda y: (y[:, :, [0, 1, 2]], y[:, :, [3]]),
    lambda y: (y[:, :, [-4, -3, -2], :], y[..., [3], :]),
]


@pytest.mark.parametrize("cut", RUNS)
def test_a_run_of_numbers_is_a_slice(cut: Cut) -> None:
    x = torch.randn(2, 3, 5)
    model, plain = Cutting(cut).eval(), Cutting(lambda y: (y[:, :, :3], y[:, :, 3:])).eval()
    found, wanted = hm.trace(model, x), hm.trace(plain, x)
    assert found.tensors == wanted.tensors
    assert [s.free for s in found.spaces] == [s.free for s in wanted.spaces]
    found.verify(model)
    program = export(model, x)
    assert torch.equal(program.module()(x), model(x))


OTHERS: list[Cut] = [
    lambda y: (y[:, :, [0, 2, 1]], y[:, :, [3]]),
    lambda y: (y[:, :, [-1, 0, 1]], y[..., [-2], :]),
    lambda y: (y[:, :, :3], y[[0, 1], [0, 1]][:, None, :1]),
    lambda y: (y[:, :, :3], y[:, 0, [3]][:, None]),
]


@pytest.mark.parametrize("cut", OTHERS)
def test_other_lists_are_left(cut: Cut) -> None:
    x = torch.randn(2, 3, 5)
    model = Cutting(cut).eval()
    assert torch.equal(export(model, x).module()(x), model(x))


def test_a_run_is_a_copy() -> None:
    def cut(y: Tensor) -> tuple[Tensor, Tensor]:
        one = y[..., [-1], :]
        one += 1
        return y, one.view(2, 3, 8)[:, :, None]  # slices are not laid out for a view

    x = torch.randn(2, 3, 5)
    model = Cutting(cut).eval()
    assert torch.equal(export(model, x).module()(x), model(x))


class Written(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 3), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        scale = torch.tensor([1.0, 2.0, 4.0], device=x.device)
        most = torch.as_tensor(3.0, device=x.device)
        return self.last(torch.minimum(self.first(x) * scale, most))


def test_numbers_are_known_without_weights() -> None:
    program = export(Written().to("meta").eval(), torch.randn(2, 4))
    place_on(program, torch.device("cpu"))
    values = [value.tolist() for value in program.constants.values()]
    assert [1.0, 2.0, 4.0] in values
    assert 3.0 in values
