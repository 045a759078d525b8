"""Exporting residual networks: whose sums write into a branch, as torchvision's do, and others."""

import pytest
import torch
from torch import Tensor, nn

from hetmerge.tracing import export


class Block(nn.Module):
    def __init__(self, width: int, writes: bool):
        super().__init__()
        self.writes = writes
        self.conv1, self.norm1 = nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width)
        self.conv2, self.norm2 = nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=writes)

    def forward(self, x: Tensor) -> Tensor:
        out = self.norm2(self.conv2(self.relu(self.norm1(self.conv1(x)))))
        if not self.writes:
            return self.relu(out + x)
        out += x
        return self.relu(out)


def torch_export(model: nn.Module, x: Tensor) -> torch.export.ExportedProgram:
    """A program without writing operators, as torch makes it."""
    found = torch.export.export(model, (x,), strict=False)
    return found.run_decompositions({}) if model[0].writes else found


CALLS = {"hetmerge": export, "torch": torch_export}


@pytest.mark.filterwarnings("ignore:.*LeafSpec.*:FutureWarning")  # torch's own use
@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("writes", [True, False])
@pytest.mark.parametrize("blocks", [9, 54])
def test_export(measure, name, writes, blocks):
    model = nn.Sequential(*(Block(8, writes) for _ in range(blocks))).eval().requires_grad_(False)
    x = torch.randn(4, 8, 8, 8)
    call = CALLS[name]
    assert torch.equal(call(model, x).module()(x), model(x))
    case = f"export of {blocks} {'writing' if writes else 'plain'} residual blocks"
    measure(lambda: call(model, x), case, name, rounds=5)
