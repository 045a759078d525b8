"""What makes a residual branch zero, and what a plan says where nothing is known to."""

import pytest
import torch
from torch import nn

import hetmerge as hm

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
