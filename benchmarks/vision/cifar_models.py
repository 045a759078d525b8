"""The CIFAR ResNet of He et al. (2016) with parameter-free shortcuts, a plain VGG, their loader."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor, nn


class PadShortcut(nn.Module):
    """Option A: every second pixel, new channels filled with zeros on both sides."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.before = (outputs - inputs) // 2
        self.after = outputs - inputs - self.before

    def forward(self, x: Tensor) -> Tensor:
        x = x[:, :, :: self.stride, :: self.stride]
        return nn.functional.pad(x, (0, 0, 0, 0, self.before, self.after))


class BasicBlock(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        same = stride == 1 and inputs == outputs
        self.shortcut = nn.Identity() if same else PadShortcut(inputs, outputs, stride)

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.relu(self.bn1(self.conv1(x)))
        return torch.relu(self.bn2(self.conv2(hidden)) + self.shortcut(x))


class ResNet(nn.Module):
    """Three stages of `blocks` basic blocks at `widths` channels, for 32x32 images."""

    def __init__(
        self,
        blocks: Sequence[int] = (3, 3, 3),
        widths: Sequence[int] = (16, 32, 64),
        classes: int = 10,
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, widths[0], 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        inputs = [widths[0], *widths[:2]]
        for index, (count, before, width) in enumerate(zip(blocks, inputs, widths, strict=True)):
            first = BasicBlock(before, width, 1 if index == 0 else 2)
            rest = (BasicBlock(width, width, 1) for _ in range(count - 1))
            setattr(self, f"layer{index + 1}", nn.Sequential(first, *rest))
        self.linear = nn.Linear(widths[2], classes)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(x.mean(dim=(2, 3)))

    def block_names(self) -> list[str]:
        return [name for name, module in self.named_modules() if isinstance(module, BasicBlock)]


class ConvBlock(nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, 3, 1, 1, bias=False)
        self.bn = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.bn(self.conv(x)))


class VGG(nn.Module):
    """Three stages of plain convolutions with BatchNorm, each behind a pooling but the first."""

    def __init__(
        self,
        blocks: Sequence[int] = (4, 4, 4),
        widths: Sequence[int] = (16, 32, 64),
        classes: int = 10,
    ) -> None:
        super().__init__()
        inputs = [3, *widths[:2]]
        for index, (count, before, width) in enumerate(zip(blocks, inputs, widths, strict=True)):
            first = ConvBlock(before, width)
            rest = (ConvBlock(width, width) for _ in range(count - 1))
            setattr(self, f"layer{index + 1}", nn.Sequential(first, *rest))
        self.linear = nn.Linear(widths[2], classes)

    def forward(self, x: Tensor) -> Tensor:
        pool = nn.functional.max_pool2d
        x = self.layer3(pool(self.layer2(pool(self.layer1(x), 2)), 2))
        return self.linear(x.mean(dim=(2, 3)))

    def block_names(self) -> list[str]:
        return [name for name, module in self.named_modules() if isinstance(module, ConvBlock)]


@dataclass(frozen=True)
class Parent:
    """A loaded network, and which of the ten classes its outputs stand for."""

    name: str
    net: ResNet | VGG
    classes: tuple[int, ...]
    accuracy: float | None = None  # on test images of its own classes, if its file says so


def load(path: Path) -> Parent:
    """Read a network whose blocks, widths and classes follow from its tensors and metadata."""
    with safe_open(path, "pt") as file:
        state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        metadata = file.metadata() or {}
    kind, conv = (ResNet, "conv1") if "conv1.weight" in state else (VGG, "conv")
    blocks = [_count(state, stage) for stage in (1, 2, 3)]
    widths = [len(state[f"layer{stage}.0.{conv}.weight"]) for stage in (1, 2, 3)]
    outputs = len(state["linear.weight"])
    classes = tuple(json.loads(metadata["classes"])) if "classes" in metadata else range(outputs)
    net = kind(blocks, widths, outputs)
    missing, unexpected = net.load_state_dict(state, strict=False)
    # Files written before torch counted batches lack that buffer; no other tensor may be missing.
    wrong = [key for key in missing if not key.endswith("num_batches_tracked")] + unexpected
    if wrong:
        raise SystemExit(f"{path}: not a CIFAR network of these families: {wrong[:3]}")
    accuracy = float(metadata["accuracy"]) if "accuracy" in metadata else None
    return Parent(path.stem, net.eval(), tuple(classes), accuracy)


def _count(state: dict[str, Tensor], stage: int) -> int:
    found = (re.match(rf"layer{stage}\.(\d+)\.", key) for key in state)
    return 1 + max(int(match.group(1)) for match in found if match)
