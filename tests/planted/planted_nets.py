"""Small networks with awkward normalisation statistics, in float64."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Pad(nn.Module):
    """The parameter-free shortcut of CIFAR ResNets: every second pixel, zero channels around."""

    def __init__(self, extra: int) -> None:
        super().__init__()
        self.extra = extra

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.extra, self.extra))


class Block(nn.Module):
    def __init__(self, width_in: int, width: int, stride: int, shortcut: str) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width_in, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.shortcut: nn.Module = nn.Identity()
        if stride > 1 and shortcut == "pad":
            self.shortcut = Pad((width - width_in) // 2)
        elif stride > 1:
            conv = nn.Conv2d(width_in, width, 1, stride, bias=False)
            self.shortcut = nn.Sequential(conv, nn.BatchNorm2d(width))

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        y += self.shortcut(x)
        return F.relu(y)


class ResNet(nn.Module):
    def __init__(
        self, blocks: Sequence[int], widths: Sequence[int], shortcut: str = "conv", classes: int = 5
    ) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, widths[0], 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(widths[0])
        previous, stages = widths[0], []
        for s, (count, width) in enumerate(zip(blocks, widths, strict=True)):
            strides = [1 if s == 0 else 2] + [1] * (count - 1)
            made = []
            for stride in strides:
                made.append(Block(previous, width, stride, shortcut))
                previous = width
            stages.append(nn.Sequential(*made))
        self.stages = nn.ModuleList(stages)
        self.head = nn.Linear(previous, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.stem(x)))
        for stage in self.stages:
            x = stage(x)
        return self.head(x.mean((2, 3)))


def vgg(depths: Sequence[int], widths: Sequence[int], classes: int = 5) -> nn.Sequential:
    layers: list[nn.Module] = []
    previous = 3
    for depth, width in zip(depths, widths, strict=True):
        for _ in range(depth):
            layers += [nn.Conv2d(previous, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()]
            previous = width
        layers.append(nn.MaxPool2d(2))
    body = nn.Sequential(*layers)
    hidden = nn.Linear(previous * 9, 12)
    return nn.Sequential(body, nn.Flatten(), hidden, nn.ReLU(), nn.Linear(12, classes))


class Grouped(nn.Module):
    """Grouped and depthwise convolutions, GroupNorm, squeeze-excite."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        self.norm = nn.GroupNorm(2, width)
        self.grouped = nn.Conv2d(width, 2 * width, 3, padding=1, groups=2)
        self.depthwise = nn.Conv2d(2 * width, 2 * width, 3, padding=1, groups=2 * width)
        self.squeeze = nn.Linear(2 * width, 4)
        self.excite = nn.Linear(4, 2 * width)
        self.head = nn.Linear(2 * width, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.depthwise(F.relu(self.grouped(F.relu(self.norm(self.stem(x)))))))
        gate = torch.sigmoid(self.excite(F.relu(self.squeeze(x.mean((2, 3))))))
        return self.head((x * gate[:, :, None, None]).mean((2, 3)))


def randomised(model: nn.Module, seed: int) -> nn.Module:
    """Weights and statistics such that no norm is an identity and every unit is alive: features
    that calibration sees constant carry nothing to match by."""
    generator = torch.Generator().manual_seed(seed)
    model = model.double().eval()
    for module in model.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            fan_in = module.weight[0].numel()
            module.weight.data.normal_(0, fan_in**-0.5, generator=generator)
            if module.bias is not None:
                module.bias.data.uniform_(0.6, 1.4, generator=generator)
        elif isinstance(module, (nn.BatchNorm2d, nn.GroupNorm)):
            module.weight.data.uniform_(0.7, 1.3, generator=generator)
            module.bias.data.uniform_(0.6, 1.4, generator=generator)
            if isinstance(module, nn.BatchNorm2d):
                assert module.running_mean is not None
                assert module.running_var is not None
                module.running_mean.normal_(0, 0.3, generator=generator)
                module.running_var.uniform_(0.5, 1.5, generator=generator)
    return model


def images(batches: int = 2, count: int = 24, size: int = 12) -> list[Tensor]:
    generator = torch.Generator().manual_seed(7)
    return [
        torch.randn(count, 3, size, size, dtype=torch.float64, generator=generator)
        for _ in range(batches)
    ]


PAIRS: dict[str, Callable[[], tuple[nn.Module, nn.Module]]] = {
    "resnet-conv": lambda: (
        randomised(ResNet([3, 1], [8, 16]), 1),
        randomised(ResNet([1, 1], [6, 20]), 2),
    ),
    "resnet-pad": lambda: (
        randomised(ResNet([2, 3], [8, 16], "pad"), 3),
        randomised(ResNet([2, 1], [10, 20], "pad"), 4),
    ),
    "resnet-mixed-depth": lambda: (
        randomised(ResNet([3, 1], [8, 16]), 5),
        randomised(ResNet([1, 2], [8, 12]), 6),
    ),
    "vgg": lambda: (randomised(vgg([3, 2], [8, 10]), 7), randomised(vgg([1, 2], [10, 8]), 8)),
    "grouped": lambda: (randomised(Grouped(8), 9), randomised(Grouped(8), 10)),
}
