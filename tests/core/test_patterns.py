"""Units of one stage whose code differs, such as shifted windows in every second block."""

import pytest
import torch
from torch import nn

import hetmerge as hm

TOKENS = 6


class Block(nn.Module):
    """x + a branch; every second one swaps the halves of its tokens, or reads another mask."""

    def __init__(self, width: int, odd: bool, kind: str) -> None:
        super().__init__()
        self.odd, self.kind = odd, kind
        self.norm = nn.LayerNorm(width)
        self.first, self.second = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def _swapped(self, y):
        return y.reshape(len(y), 2, TOKENS // 2, -1).flip(1).reshape(len(y), TOKENS, -1)

    def forward(self, x, masks):
        y = self.norm(x)
        y = self._swapped(y) if self.odd and self.kind == "swapped" else y
        y = self.first(y).reshape(len(x), TOKENS, 2, -1).relu().reshape(len(x), TOKENS, -1)
        if self.kind == "masked":
            y = y * masks[self.odd]
        y = self.second(y)
        return x + (self._swapped(y) if self.odd and self.kind == "swapped" else y)


class Net(nn.Module):
    def __init__(self, depth: int, width: int, kind: str) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(4, width), nn.Linear(width, 5)
        self.blocks = nn.ModuleList(Block(width, bool(i % 2), kind) for i in range(depth))

    def forward(self, x):
        first = x[..., :1]
        masks = first.tanh() + 1, first.sigmoid()
        x = self.stem(x)
        for block in self.blocks:
            x = block(x, masks)
        return self.head(x)


def parents(kind: str) -> list[nn.Module]:
    found = []
    for seed, (depth, width) in enumerate([(2, 8), (5, 6)]):
        torch.manual_seed(30 + seed)  # where CKA alone would choose other places
        found.append(Net(depth, width, kind).double().eval())
    return found


def batches() -> list[torch.Tensor]:
    torch.manual_seed(0)
    return list(torch.randn(64, TOKENS, 4, dtype=torch.float64).split(32))


OPTIONS = {"weights": [1, 0], "refit": False, "progress": False}


@pytest.mark.parametrize("kind", ["swapped", "masked"])
def test_a_unit_stands_where_the_code_does_the_same(kind) -> None:
    wide, deep = parents(kind)
    result = hm.merge([wide, deep], batches(), match="permute", **OPTIONS)
    placed = [i for i, k in enumerate(result.plan.slots[0][0]) if k is not None]
    assert [i % 2 for i in placed] == [0, 1]
    with torch.no_grad():
        found, wanted = result.model(batches()[0]), wide(batches()[0])
    assert float((found - wanted).abs().max()) < 1e-10
    assert not any("does something else" in note for note in result.report.notes)


@pytest.mark.parametrize("kind", ["swapped", "masked"])
def test_a_unit_that_stands_elsewhere_is_told(kind) -> None:
    models = parents(kind)
    for match in ("permute", "zip"):
        result = hm.merge(models, batches(), match=match, depth="tail", progress=False)
        told = [note for note in result.report.notes if "does something else" in note]
        assert len(told) == 1
        assert told[0].startswith("models[0]: unit 'blocks.1' stands at 'blocks.4'")
        assert bool(result.model(batches()[0]).isfinite().all())
