"""Families without images: multilayer perceptrons, transformer encoders, tied weights."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn


def perceptron(widths: Sequence[int], classes: int = 5, inputs: int = 6) -> nn.Sequential:
    layers: list[nn.Module] = []
    for before, width in zip([inputs, *widths], widths, strict=False):
        layers += [nn.Linear(before, width), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(widths[-1], classes))


class NormBlock(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(torch.relu(self.up(self.norm(x))))


class NormPerceptron(nn.Module):
    """Residual perceptron with LayerNorm on the stream."""

    def __init__(self, depth: int, width: int, inputs: int = 6, classes: int = 5):
        super().__init__()
        self.stem = nn.Linear(inputs, width)
        self.blocks = nn.ModuleList(NormBlock(width) for _ in range(depth))
        self.head = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return self.head(x)


class Encoder(nn.Module):
    """torch's own transformer encoder over a sequence of vectors."""

    def __init__(self, depth: int, width: int, heads: int = 2, inputs: int = 6, classes: int = 5):
        super().__init__()
        self.stem = nn.Linear(inputs, width)
        layer = nn.TransformerEncoderLayer(
            width, heads, 2 * width, dropout=0.0, batch_first=True, norm_first=True
        )
        self.encoder = nn.TransformerEncoder(layer, depth, enable_nested_tensor=False)
        self.head = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.encoder(self.stem(x)).mean(1))


class Tied(nn.Module):
    """One matrix embeds tokens and reads them off."""

    def __init__(self, depth: int, width: int, vocabulary: int = 40):
        super().__init__()
        self.embed = nn.Embedding(vocabulary, width)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(width, 2 * width), nn.ReLU(), nn.Linear(2 * width, width))
            for _ in range(depth)
        )
        self.read = nn.Linear(width, vocabulary, bias=False)
        self.read.weight = self.embed.weight

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens)
        for block in self.blocks:
            x = x + block(x)
        return self.read(x)
