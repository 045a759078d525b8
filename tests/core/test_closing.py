"""What makes a residual branch zero, and what a plan says where nothing is known to."""

import pytest
import torch
from torch import nn

import hetmerge as hm
from hetmerge import closing
from hetmerge.layers import op_name
from hetmerge.tracing import export

WIDTH = 6


class Unit(nn.Module):
    """x + a branch, of a kind."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.norm, self.last = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.first = nn.Linear(WIDTH, WIDTH)
        self.second = nn.Linear(WIDTH, WIDTH)
        self.experts = nn.Parameter(torch.randn(3, WIDTH, WIDTH))
        self.scale = nn.Parameter(torch.rand(WIDTH) + 0.5)
        self.biases = nn.Parameter(torch.randn(3, WIDTH))

    def forward(self, x):
        y = self.norm(x)
        if self.kind == "activation":
            return x + torch.relu(self.first(y))
        if self.kind == "gated":
            return x + torch.sigmoid(self.second(y)) * self.first(y)
        if self.kind == "two":
            return x + (self.first(y) - self.second(y).tanh())
        if self.kind == "experts":
            each = torch.bmm(y.expand(3, *y.shape), self.experts) + self.biases[:, None]
            return x + (self.first(y)[:, :3].softmax(-1).T[..., None] * each).sum(0)
        if self.kind == "normed":
            return x + self.last(self.first(y))
        if self.kind == "rolled":
            return x + self.first(y).roll(1, 0)
        if self.kind == "constant":
            return x + (self.first(y) + 0.5)
        if self.kind == "scaled":
            return self.scale * x + self.first(y)
        if self.kind == "shrunk":
            return 0.5 * x + self.first(y)
        return x + torch.sigmoid(self.first(y))  # one half where its layer is zero


class Net(nn.Module):
    def __init__(self, depth: int, kind: str) -> None:
        super().__init__()
        self.stem = nn.Linear(4, WIDTH)
        self.units = nn.Sequential(*(Unit(kind) for _ in range(depth)))
        self.head = nn.Linear(WIDTH, 5)

    def forward(self, x):
        return self.head(self.units(self.stem(x)))


KINDS = ("activation", "gated", "two", "experts", "scaled", "normed", "rolled")
OPEN = ("shrunk", "constant", "open")


@pytest.mark.parametrize("kind", KINDS + OPEN)
def test_an_absent_unit_is_passed_exactly_or_said_not_to_be(kind) -> None:
    parents = []
    for depth in (1, 2):
        torch.manual_seed(depth)
        parents.append(Net(depth, kind).double().eval())
    batches = list(torch.randn(64, 4, dtype=torch.float64).split(32))
    options = {"match": "permute", "weights": [1, 0], "refit": False, "progress": False}
    result = hm.merge(parents, batches, **options)
    with torch.no_grad():
        found, wanted = (model(batches[0]) for model in (result.model, parents[0]))
    apart = float((found - wanted).abs().max())
    said = any("not exact" in note for note in result.plan.notes)
    assert said == (kind in OPEN)
    assert said == (apart > 1e-8)


F = nn.functional
MOVED = {
    "roll": lambda y: y.roll(1, 2),
    "flip": lambda y: y.flip(2),
    "narrow": lambda y: y.narrow(2, 1, 2),
    "repeat": lambda y: y.repeat(1, 2, 1, 1),
    "index_select": lambda y: y.index_select(2, torch.tensor([1, 0])),
    "im2col": lambda y: F.unfold(y, 2),
    "col2im": lambda y: F.fold(y.flatten(2), (5, 2), (2, 2)),
    "avg_pool2d": lambda y: F.avg_pool2d(y, 2),
    "max_pool2d": lambda y: F.max_pool2d(y, 2, padding=1),
    "adaptive_avg_pool2d": lambda y: F.adaptive_avg_pool2d(y, 2),
    "upsample_nearest2d": lambda y: F.interpolate(y, scale_factor=2),
    "upsample_bilinear2d": lambda y: F.interpolate(y, scale_factor=2, mode="bilinear"),
    "pixel_shuffle": lambda y: F.pixel_shuffle(y, 2),
}


class Moved(nn.Module):
    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name

    def forward(self, y):
        return MOVED[self.name](y)


@pytest.mark.parametrize("name", MOVED)
def test_what_keeps_zeros_is_known_by_the_name_that_it_is_exported_under(name) -> None:
    zeros = torch.zeros(2, 4, 4, 4) if name != "col2im" else torch.zeros(2, 4, 2, 2)
    model = Moved(name)
    assert not model(zeros).any()
    nodes = [n for n in export(model, zeros).graph.nodes if n.op == "call_function"]
    assert {op_name(node) for node in nodes} <= closing._FIRST
