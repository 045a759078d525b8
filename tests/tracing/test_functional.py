"""Writing operators: replaced where nobody can tell, left where somebody can."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

import hetmerge as hm
from hetmerge.tracing import export
from hetmerge.tracing.functional import make_functional, mutable


class Net(nn.Module):
    """A convolution, a norm and a dropout, and what is done with them."""

    def __init__(self, function: Callable[[Net, Tensor], Any]):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3)
        self.drop = nn.Dropout(0.5)
        self.function = function

    def forward(self, x: Tensor) -> Any:
        return self.function(self, x)


def block(net: Net, x: Tensor) -> Tensor:
    y = net.norm(net.conv(torch.relu_(net.conv(x))))
    y += x
    return torch.relu_(y)


def written_twice(net: Net, x: Tensor) -> Tensor:
    y = net.conv(x)
    y.add_(1)
    y.mul_(x)
    return y + y.relu_()


def an_output(net: Net, x: Tensor) -> tuple[Tensor, Tensor]:
    y = net.conv(x)
    y.add_(1)
    return y, y * 2


def seen_before(net: Net, x: Tensor) -> Tensor:
    y = net.conv(x)
    top = y[:, :1] * 2
    return y.mul_(3) * top


def through_a_view(net: Net, x: Tensor) -> Tensor:
    y = net.conv(x)
    y[:, :1].add_(1)
    return y


def seen_by_a_view(net: Net, x: Tensor) -> Tensor:
    y = net.conv(x)
    flat = y.flatten(1)
    y.add_(1)
    return flat * 2


def seen_through_dropout(net: Net, x: Tensor) -> Tensor:
    y = net.conv(x)
    same = net.drop(y)  # in evaluation its output is its input
    y.relu_()
    return same * y


def seen_behind_dropout(net: Net, x: Tensor) -> Tensor:
    y = net.conv(x)
    net.drop(y).relu_()
    return y * 2


def halves(net: Net, x: Tensor) -> Tensor:
    first, second = net.conv(x).chunk(2, dim=2)
    first += second
    return first * second


REPLACED: list[Callable[[Net, Tensor], Any]] = [
    block,
    written_twice,
    an_output,
    seen_before,
    lambda net, x: net.conv(x).flatten(1).add_(1) * 2,
    lambda net, x: net.conv(x).transpose(2, 3).add_(x) + 1,
    lambda net, x: net.conv(x).fill_(2.0) * x,
    lambda net, x: net.conv(x).clamp_(0, 1).clamp_min_(0.2),
    lambda net, x: (net.conv(x).add_(1), net.conv(x))[1],
]
LEFT: list[Callable[[Net, Tensor], Any]] = [
    through_a_view,
    seen_by_a_view,
    seen_through_dropout,
    seen_behind_dropout,
    halves,
    lambda net, x: x.mul_(2) + 1,  # the caller sees it
    lambda net, x: net.conv(x).half().add_(x),  # a sum of two types has the wider one
]


def programs(function: Callable[[Net, Tensor], Any]) -> tuple[Net, Tensor, ExportedProgram]:
    torch.manual_seed(0)
    net, x = Net(function).eval().requires_grad_(False), torch.randn(2, 3, 4, 4)
    program = torch.export.export(net, (x.clone(),), strict=False)
    assert any(mutable(node) for node in program.graph.nodes)
    make_functional(program)
    program.graph.eliminate_dead_code()
    program.graph.lint()
    program.graph_module.recompile()
    return net, x, program


def same(found: Any, wanted: Any) -> bool:
    found, wanted = (v if isinstance(v, tuple) else (v,) for v in (found, wanted))
    return all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))


@pytest.mark.parametrize("function", REPLACED)
def test_replaced_and_the_same(function: Callable[[Net, Tensor], Any]) -> None:
    net, x, program = programs(function)
    assert not [node for node in program.graph.nodes if mutable(node)]
    assert same(program.module()(x.clone()), copy.deepcopy(net)(x.clone()))


@pytest.mark.parametrize("function", LEFT)
def test_left_and_the_same(function: Callable[[Net, Tensor], Any]) -> None:
    net, x, program = programs(function)
    assert [node for node in program.graph.nodes if mutable(node)]
    assert same(program.module()(x.clone()), copy.deepcopy(net)(x.clone()))


def test_open_sizes_are_left_to_torch() -> None:
    net = Net(block).eval()
    program = export(net, (torch.randn(2, 3, 4, 4),), free_sizes=True)
    x = torch.randn(3, 3, 5, 5)
    assert not [node for node in program.graph.nodes if mutable(node)]
    assert torch.allclose(program.module()(x), net(x), atol=1e-6)


def test_spaces_are_those_of_the_same_net_without_writing(monkeypatch: pytest.MonkeyPatch) -> None:
    def no(*args: Any) -> None:
        raise AssertionError("traced a second time")

    monkeypatch.setattr(ExportedProgram, "run_decompositions", no)
    x = torch.randn(2, 3, 4, 4)
    apart = Net(lambda net, x: torch.relu(net.norm(net.conv(torch.relu(net.conv(x)))) + x))
    graphs = [hm.trace(net.eval(), x) for net in (Net(block), apart)]
    assert graphs[0].tensors == graphs[1].tensors
    assert [s.size for s in graphs[0].spaces] == [s.size for s in graphs[1].spaces]
