"""Stages and blocks found from the model, and their alignment stage by stage."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
import torch.nn.functional as F
from planted_nets import ResNet, images, randomised, vgg
from torch import Tensor, nn

import hetmerge as hm
from hetmerge.alignment import align, find_stages
from hetmerge.batches import as_call
from hetmerge.errors import AlignmentError
from hetmerge.network import Network


def network(model: nn.Module, x: Tensor | None = None) -> Network:
    return Network(model, as_call(images(1)[0] if x is None else x))


def counts(models: Sequence[nn.Module], x: Tensor | None = None) -> list[list[int]]:
    found = find_stages([network(m, x) for m in models])
    return [[len(stage.units) for stage in stages] for stages in found]


def test_blocks_of_a_residual_network() -> None:
    models = [randomised(ResNet([3, 2], [8, 16]), 0), randomised(ResNet([1, 1], [6, 8]), 1)]
    assert counts(models) == [[3, 2], [1, 1]]


def test_layers_of_a_plain_network() -> None:
    models = [randomised(vgg([4, 2], [8, 8]), 0), randomised(vgg([2, 3], [8, 8]), 1)]
    assert counts(models) == [[4, 2], [2, 3]]


def mlp(*widths: int) -> nn.Module:
    layers: list[nn.Module] = []
    for width_in, width in zip((10, *widths), widths, strict=False):
        layers += [nn.Linear(width_in, width), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(widths[-1], 3)).double()


def test_hidden_layers_of_a_perceptron() -> None:
    models = [mlp(12, 12, 12, 12), mlp(9, 9)]
    assert counts(models, torch.randn(8, 10).double()) == [[4, 1], [2, 1]]


class Staged(nn.Module):
    """Blocks in stages, the last two of which give outputs of one shape."""

    def __init__(self, *depths: int) -> None:
        super().__init__()
        self.stem = nn.Linear(10, 8)
        self.stages = nn.ModuleList(
            nn.Sequential(nn.Sequential(*(residual() for _ in range(n)))) for n in depths
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for stage in self.stages:
            x = stage(x)
        return x


def residual() -> nn.Module:
    return nn.TransformerEncoderLayer(8, 2, 8, batch_first=True)


def test_where_stages_are_as_many_their_blocks_are_the_units() -> None:
    x = torch.randn(8, 5, 10)
    assert counts([Staged(1, 3), Staged(1, 2)], x) == [[3], [2]]
    assert counts([Staged(1, 2), Staged(1, 2)], x) == [[2], [2]]  # nothing differs: the outer
    assert counts([Staged(1, 1, 2), Staged(1, 2)], x) == [[3], [2]]  # stages do


class Outside(nn.Module):
    """Blocks in a list, the activation between them in the model's own forward."""

    def __init__(self, depth: int) -> None:
        super().__init__()
        self.stem = nn.Linear(6, 8)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 8)) for _ in range(depth)
        )
        self.head = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = F.relu(x + block(x))
        return self.head(x)


def test_blocks_in_a_module_list() -> None:
    models = [Outside(3).double(), Outside(1).double()]
    assert counts(models, torch.randn(8, 6).double()) == [[3], [1]]


def test_every_stage_uses_its_own_similarities() -> None:
    """A deep network whose extra blocks do nothing, at another place in each stage."""
    shallow = randomised(ResNet([2, 2], [8, 16]), 3)
    deep = randomised(ResNet([4, 4], [8, 16]), 3)
    deep.load_state_dict(shallow.state_dict(), strict=False)
    places = [[0, 1], [0, 3]]
    for s, kept in enumerate(places):
        blocks = list(deep.stages[s].children())
        for k, place in enumerate(kept):
            blocks[place].load_state_dict(shallow.stages[s][k].state_dict())
        for i in set(range(4)) - set(kept):
            nn.init.zeros_(blocks[i].bn2.weight)
            nn.init.zeros_(blocks[i].bn2.bias)
    calls = [as_call(x) for x in images()]
    found = align([network(deep), network(shallow)], calls, depth="segment")
    assert found.slots[1] == [[0, 1, None, None], [0, None, None, 1]]
    assert found.base == 0
    assert align([network(deep), network(shallow)], calls, depth="head").slots[1][1][:2] == [0, 1]
    tail = align([network(deep), network(shallow)], calls, depth="tail").slots[1]
    assert tail == [[0, None, None, 1]] * 2


def test_stages_must_correspond() -> None:
    x = torch.randn(8, 10).double()
    with pytest.raises(AlignmentError, match="have 2 and 3 stages"):
        find_stages([network(mlp(12, 12), x), network(mlp(12, 12, 9, 9), x)])


def test_blocks_named_by_hand() -> None:
    models = [Outside(3).double(), Outside(1).double()]
    x = torch.randn(8, 6).double()
    networks = [network(m, x) for m in models]
    blocks = [[["blocks.0", "blocks.1", "blocks.2"]], [["blocks.0"]]]
    found = find_stages(networks, blocks)
    assert [len(s.units) for stages in found for s in stages] == [3, 1]
    with pytest.raises(AlignmentError, match="names module 'blocks.7'"):
        find_stages(networks, [[["blocks.7"]], [["blocks.0"]]])


class InTurn(nn.Module):
    """Two lists of blocks, of which one block each runs in turn."""

    def __init__(self, depth: int, width: int) -> None:
        super().__init__()
        self.entry, self.head = nn.Linear(4, width), nn.Linear(width, 3)
        self.first, self.second = (
            nn.ModuleList(
                nn.Sequential(nn.Linear(width, width), nn.Tanh(), nn.Linear(width, width))
                for _ in range(depth)
            )
            for _ in range(2)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.entry(x)
        for one, other in zip(self.first, self.second, strict=True):
            x = x + one(x)
            x = x + other(x)
        return self.head(x)


def test_blocks_of_two_lists_that_run_in_turn_need_equal_depths() -> None:
    torch.manual_seed(0)
    parents = [InTurn(2, 8).double().eval(), InTurn(2, 6).double().eval()]
    batches = list(torch.randn(64, 4, dtype=torch.float64).split(32))
    options = {"match": "permute", "refit": False, "progress": False}
    result = hm.merge(parents, batches, weights=[1, 0], **options)
    assert list(result.plan.similarities) == ["first", "second"]
    with torch.no_grad():
        torch.testing.assert_close(result.model(batches[0]), parents[0](batches[0]))
    with pytest.raises(AlignmentError, match="'first' run in turn with .*'second'.*not 2 and 3"):
        hm.merge([parents[0], InTurn(3, 6).double().eval()], batches, **options)
