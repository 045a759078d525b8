"""Two small residual networks of different depth and width, trained here on handwritten digits."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn

HALVES = ((0, 1, 2, 3, 4), (5, 6, 7, 8, 9))


class Block(nn.Module):
    """Two 3x3 convolutions with BatchNorm around a skip; the skip is a 1x1 convolution on entry."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.relu(self.bn1(self.conv1(x)))
        return torch.relu(self.bn2(self.conv2(hidden)) + self.shortcut(x))


class DigitNet(nn.Module):
    """A residual network for 8x8 images: a stem, two stages, average pooling, one linear head."""

    def __init__(self, blocks: Sequence[int], widths: Sequence[int], classes: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(1, widths[0], 3, 1, 1, bias=False), nn.BatchNorm2d(widths[0]), nn.ReLU()
        )
        self.stage1 = self._stage(blocks[0], widths[0], widths[0], stride=1)
        self.stage2 = self._stage(blocks[1], widths[0], widths[1], stride=2)
        self.head = nn.Linear(widths[1], classes)

    @staticmethod
    def _stage(count: int, inputs: int, outputs: int, stride: int) -> nn.Sequential:
        first = Block(inputs, outputs, stride)
        return nn.Sequential(first, *(Block(outputs, outputs, 1) for _ in range(count - 1)))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stage2(self.stage1(self.stem(x)))
        logits: Tensor = self.head(x.mean(dim=(2, 3)))
        return logits


@dataclass(frozen=True)
class Digits:
    """Images [N, 1, 8, 8] in [0, 1] and labels [N], split once into training and test."""

    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor


def digits(seed: int) -> Digits:
    """scikit-learn's handwritten digits: two thirds for training, one third held out."""
    images, labels = load_digits(return_X_y=True)
    images = (images / 16.0).astype(np.float32).reshape(-1, 1, 8, 8)
    parts = train_test_split(
        images, labels.astype(np.int64), test_size=1 / 3, stratify=labels, random_state=seed
    )
    train_images, test_images, train_labels, test_labels = map(torch.from_numpy, parts)
    return Digits(train_images, train_labels, test_images, test_labels)


def train(
    net: DigitNet, images: Tensor, labels: Tensor, classes: Sequence[int], *, epochs: int, seed: int
) -> None:
    """Train `net` in place on the images of `classes`, renumbered from 0 in that order."""
    chosen = torch.isin(labels, torch.tensor(classes))
    images, labels = images[chosen], labels[chosen]
    labels = (labels[:, None] == torch.tensor(classes)).int().argmax(dim=1)
    order = torch.Generator().manual_seed(seed)
    steps = epochs * -(-len(images) // 64)
    optimiser = torch.optim.SGD(
        net.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, max_lr=0.1, total_steps=steps)
    net.train()
    for _ in range(epochs):
        for rows in torch.randperm(len(images), generator=order).split(64):
            optimiser.zero_grad()
            nn.functional.cross_entropy(net(images[rows]), labels[rows]).backward()
            optimiser.step()
            schedule.step()
    net.eval()
