"""Convolutional families."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def randomise(model: nn.Module, seed: int) -> nn.Module:
    """Norms as training leaves them, not as they are made; eval mode."""
    random = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            _fill(module.running_mean, random, 0.3, 0.0)
            module.running_var.copy_(torch.rand(module.num_features, generator=random) + 0.5)
        if isinstance(module, (nn.modules.batchnorm._BatchNorm, nn.GroupNorm, nn.LayerNorm)):
            _fill(module.weight, random, 0.2, 1.0)
            _fill(module.bias, random, 0.2, 0.0)
    return model.eval()


def _fill(tensor: Tensor, random: torch.Generator, scale: float, shift: float) -> None:
    noise = torch.randn(tensor.shape, generator=random)
    tensor.detach().copy_(shift + scale * noise)


class Subsample(nn.Module):
    """Parameter-free shortcut: every second pixel, new channels zero."""

    def __init__(self, extra: int):
        super().__init__()
        self.extra = extra

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 0, self.extra))


class Block(nn.Module):
    def __init__(self, before: int, width: int, stride: int, option: str):
        super().__init__()
        self.conv1 = nn.Conv2d(before, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.shortcut: nn.Module = nn.Identity()
        if stride > 1:
            plain = nn.Conv2d(before, width, 1, stride, bias=False)
            self.shortcut = Subsample(width - before) if option == "A" else plain

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x)))))
        return torch.relu(y + self.shortcut(x))


class ResNet(nn.Module):
    """Residual network; `depths` blocks per stage, the width doubles from stage to stage."""

    def __init__(self, depths: Sequence[int], width: int, classes: int = 5, option: str = "B"):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, width, 3, 1, 1), nn.BatchNorm2d(width), nn.ReLU())
        stages = []
        for s, depth in enumerate(depths):
            out = width << s
            before = max(width, out // 2)
            strides = [2 if s else 1] + [1] * (depth - 1)
            stages.append(
                nn.Sequential(
                    *(Block(out if i else before, out, k, option) for i, k in enumerate(strides))
                )
            )
        self.layers = nn.Sequential(*stages)
        self.head = nn.Linear(width << (len(depths) - 1), classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layers(self.stem(x)).mean((2, 3)))


class Excite(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.squeeze = nn.Conv2d(width, width // 2, 1)
        self.expand = nn.Conv2d(width // 2, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.squeeze(x.mean((2, 3), keepdim=True)))
        return x * torch.sigmoid(self.expand(y))


class Inverted(nn.Module):
    """Expand, depthwise, GroupNorm or BatchNorm, squeeze-excite, contract."""

    def __init__(self, width: int, norm: str):
        super().__init__()
        inner = 2 * width
        self.expand = nn.Conv2d(width, inner, 1)
        self.depthwise = nn.Conv2d(inner, inner, 3, padding=1, groups=inner)
        self.norm = nn.GroupNorm(inner // 4, inner) if norm == "group" else nn.BatchNorm2d(inner)
        self.excite = Excite(inner)
        self.contract = nn.Conv2d(inner, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = F.gelu(self.norm(self.depthwise(self.expand(x))))
        return x + self.contract(self.excite(y))


class Mobile(nn.Module):
    def __init__(self, depth: int, width: int, norm: str = "batch", classes: int = 5):
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, 2, 1)
        self.blocks = nn.Sequential(*(Inverted(width, norm) for _ in range(depth)))
        self.grouped = nn.Conv2d(width, width, 3, padding=1, groups=width // 4)
        self.head = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.grouped(self.blocks(self.stem(x)))).mean((2, 3)))


class PreBlock(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.bn1, self.conv1 = nn.BatchNorm2d(width), nn.Conv2d(width, width, 3, 1, 1)
        self.bn2, self.conv2 = nn.BatchNorm2d(width), nn.Conv2d(width, width, 3, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv1(torch.relu(self.bn1(x)))
        return x + self.conv2(torch.relu(self.bn2(y)))


class PreActivation(nn.Module):
    """BatchNorm and ReLU stand before each convolution."""

    def __init__(self, depth: int, width: int, classes: int = 5):
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, 2, 1)
        self.blocks = nn.Sequential(*(PreBlock(width) for _ in range(depth)))
        self.norm, self.head = nn.BatchNorm2d(width), nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.norm(self.blocks(self.stem(x)))).mean((2, 3)))


class NextBlock(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.depthwise = nn.Conv2d(width, width, 5, padding=2, groups=width)
        self.norm = nn.LayerNorm(width)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
        self.scale = nn.Parameter(torch.full((width,), 0.3))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
        y = self.scale * self.down(F.gelu(self.up(y)))
        return x + y.permute(0, 3, 1, 2)


class ConvNext(nn.Module):
    """Depthwise convolution, channel-last LayerNorm, layer scale."""

    def __init__(self, depth: int, width: int, classes: int = 5):
        super().__init__()
        self.stem = nn.Conv2d(3, width, 2, 2)
        self.blocks = nn.Sequential(*(NextBlock(width) for _ in range(depth)))
        self.head = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.stem(x)).mean((2, 3)))


def vgg(widths: Sequence[int], classes: int = 5) -> nn.Sequential:
    """Plain torch modules; every width is one 3x3 convolution, pooled half way."""
    layers: list[nn.Module] = []
    for i, (before, width) in enumerate(zip([3, *widths], widths, strict=False)):
        layers += [nn.Conv2d(before, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()]
        if i == len(widths) // 2 - 1:
            layers.append(nn.MaxPool2d(2))
    return nn.Sequential(
        *layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(widths[-1], classes)
    )
