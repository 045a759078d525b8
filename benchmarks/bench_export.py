"""Exporting networks whose residual sums write into a branch, as torchvision's do."""

import pytest
import torch
from torch import Tensor, nn

from hetmerge.tracing import export


class Block(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width)
        self.conv2, self.norm2 = nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        out = self.norm2(self.conv2(self.relu(self.norm1(self.conv1(x)))))
        out += x
        return self.relu(out)


def decomposed(model: nn.Module, x: Tensor) -> torch.export.ExportedProgram:
    return torch.export.export(model, (x,), strict=False).run_decompositions({})


CALLS = {"hetmerge": export, "torch, run_decompositions": decomposed}


@pytest.mark.filterwarnings("ignore:.*LeafSpec.*:FutureWarning")  # torch's own use
@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("blocks", [9, 54])
def test_export(measure, name, blocks):
    model = nn.Sequential(*(Block(8) for _ in range(blocks))).eval().requires_grad_(False)
    x = torch.randn(4, 8, 8, 8)
    call = CALLS[name]
    assert torch.equal(call(model, x).module()(x), model(x))
    measure(lambda: call(model, x), f"export of {blocks} residual blocks", name, rounds=5)
