"""Hand-written networks of many kinds."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.case import Case, image, tensor
from zoo.sequences import (
    DenseExperts,
    FusedAttention,
    GroupedQuery,
    Mixer,
    Recurrent,
    RotaryAttention,
    Seq2Seq,
    TiedTranspose,
    TorchAttention,
    WeightNorm,
    split_bloom,
    split_timm,
)


class Perceptron(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm = nn.Linear(20, 32), nn.LayerNorm(32)
        self.b, self.c = nn.Linear(32, 24), nn.Linear(24, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(torch.relu(self.b(torch.tanh(self.norm(self.a(x))))))


def vgg(inplace: bool) -> nn.Module:
    layers: list[nn.Module] = []
    channels = 3
    for width in (8, 8, 0, 12, 12, 0):
        if width == 0:
            layers.append(nn.MaxPool2d(2))
            continue
        layers += [nn.Conv2d(channels, width, 3, padding=1), nn.BatchNorm2d(width)]
        layers.append(nn.ReLU(inplace=inplace))
        channels = width
    head = [nn.Flatten(), nn.Linear(12 * 16, 20), nn.ReLU(), nn.Dropout(), nn.Linear(20, 5)]
    return nn.Sequential(*layers, *head)


class Residual(nn.Module):
    def __init__(self, inside: int, out: int, stride: int, shortcut: str, inplace: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inside, out, 3, stride, 1, bias=False)
        self.bn1, self.bn2 = nn.BatchNorm2d(out), nn.BatchNorm2d(out)
        self.conv2 = nn.Conv2d(out, out, 3, padding=1, bias=False)
        self.relu, self.kind, self.pad = nn.ReLU(inplace), shortcut, (out - inside) // 2
        if shortcut == "conv" and stride > 1:
            self.short: nn.Module = nn.Sequential(
                nn.Conv2d(inside, out, 1, stride, bias=False), nn.BatchNorm2d(out)
            )
        else:
            self.short = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        if self.kind == "pad" and self.pad:
            short = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.pad, self.pad))
        else:
            short = self.short(x)
        if self.relu.inplace:
            y += short
        else:
            y = y + short
        return self.relu(y)


class ResNet(nn.Module):
    def __init__(self, shortcut: str, inplace: bool) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        blocks = []
        inside = 8
        for out in (8, 16, 32):
            for i in range(2):
                stride = 2 if i == 0 and out > 8 else 1
                blocks.append(Residual(inside, out, stride, shortcut, inplace))
                inside = out
        self.blocks, self.head = nn.Sequential(*blocks), nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(torch.relu(self.norm(self.stem(x))))
        return self.head(F.adaptive_avg_pool2d(x, 1).flatten(1))


class GroupedSqueeze(nn.Module):
    """GroupNorm, grouped convolution, squeeze and excitation."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm = nn.Conv2d(3, 16, 3, padding=1), nn.GroupNorm(4, 16)
        self.b = nn.Conv2d(16, 24, 3, groups=4)
        self.down, self.up, self.head = nn.Linear(24, 6), nn.Linear(6, 24), nn.Linear(24, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.b(F.silu(self.norm(self.a(x)))))
        gate = torch.sigmoid(self.up(F.relu(self.down(x.mean((2, 3))))))
        return self.head((x * gate[:, :, None, None]).mean((-1, -2)))


class Bottleneck(nn.Module):
    """Grouped convolution between pointwise ones (ResNeXt)."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.n1 = nn.Conv2d(3, 12, 1), nn.BatchNorm2d(12)
        self.b, self.n2 = nn.Conv2d(12, 16, 1), nn.BatchNorm2d(16)
        self.c, self.n3 = nn.Conv2d(16, 16, 3, padding=1, groups=4), nn.BatchNorm2d(16)
        self.d, self.head = nn.Conv2d(16, 12, 1), nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.n1(self.a(x)))
        y = F.relu(self.n3(self.c(F.relu(self.n2(self.b(x))))))
        return self.head(F.relu(x + self.d(y)).mean((2, 3)))


class ShuffleV1(nn.Module):
    def __init__(self, module: bool = False) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 16, 1), nn.Conv2d(16, 32, 1, groups=4)
        self.d = nn.Conv2d(32, 32, 3, groups=32, padding=1)
        self.c, self.head = nn.Conv2d(32, 16, 1, groups=4), nn.Linear(16, 5)
        self.shuffle = nn.ChannelShuffle(4) if module else None

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.a(x))
        y = self.b(x)
        n, c, h, w = y.shape
        if self.shuffle is not None:
            y = self.shuffle(y)
        else:
            y = y.view(n, 4, c // 4, h, w).transpose(1, 2).reshape(n, c, h, w)
        return self.head((x + self.c(self.d(y))).mean((2, 3)))


class ShuffleV2(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.head = nn.Conv2d(3, 16, 1), nn.Linear(16, 5)
        self.branches = nn.ModuleList([nn.Conv2d(8, 8, 1) for _ in range(2)])

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.a(x))
        for branch in self.branches:
            left, right = x.chunk(2, 1)
            x = torch.cat([left, F.relu(branch(right))], 1)
            n, c, h, w = x.shape
            x = x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)
        return self.head(x.mean((2, 3)))


class DenseNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.n1 = nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16)
        self.b, self.n2 = nn.Conv2d(16, 8, 3, padding=1), nn.BatchNorm2d(24)
        self.c, self.n3 = nn.Conv2d(24, 8, 3, padding=1), nn.BatchNorm2d(32)
        self.transition, self.head = nn.Conv2d(32, 12, 1), nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        x = torch.cat([x, self.b(F.relu(self.n1(x)))], 1)
        x = torch.cat([x, self.c(F.relu(self.n2(x)))], 1)
        return self.head(F.relu(self.transition(F.relu(self.n3(x)))).mean((2, 3)))


class UNet(nn.Module):
    def __init__(self, up: nn.Module) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 16, 3, 2, 1)
        self.up = up
        self.c, self.head = nn.Conv2d(16, 8, 3, padding=1), nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        a = F.relu(self.a(x))
        up = self.up(F.relu(self.b(a)))
        return self.head(F.relu(self.c(torch.cat([a, up], 1))))


class PixelShuffle(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 16, 3, padding=1)
        self.c, self.d = nn.Conv2d(4, 6, 3), nn.Conv2d(24, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.pixel_shuffle(F.relu(self.b(F.relu(self.a(x)))), 2)
        return self.d(F.pixel_unshuffle(F.relu(self.c(x)), 2))


class Activations(nn.Module):
    """PReLU, GLU, Bilinear, grouped transposed convolution, InstanceNorm."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.prelu = nn.Conv1d(3, 16, 3, padding=1), nn.PReLU(16)
        self.norm = nn.InstanceNorm1d(16, affine=True)
        self.up = nn.ConvTranspose1d(16, 24, 2, stride=2, groups=2)
        self.places = nn.Parameter(torch.randn(24))
        self.gate, self.pair, self.head = nn.Linear(24, 20), nn.Bilinear(10, 10, 7), nn.Linear(7, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.up(self.norm(self.prelu(self.a(x)))) @ self.places
        x = F.glu(self.gate(x))
        return self.head(self.pair(x, x).relu())


class Assigned(nn.Module):
    """Writes into a buffer of zeros through slices."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(20, 32), nn.Linear(32, 16), nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        out = x.new_zeros(x.shape)
        out[..., :16] = self.b(torch.relu(x))
        out[..., 16:] += x[..., :16]
        return self.c(torch.tanh(out) + x)


class Dead(nn.Module):
    """One parameter is never used, one output is a tuple."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.unused = nn.Linear(20, 32), nn.Linear(32, 5), nn.Linear(32, 7)

    def forward(self, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        x = torch.relu(self.a(x))
        return self.b(x), {"mean": x.mean(-1)}


class Shared(nn.Module):
    """One block applied twice, and one module under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.block, self.head = nn.Linear(20, 32), nn.Linear(32, 32), nn.Linear(32, 5)
        self.again = self.block
        self.up, self.down = nn.Linear(32, 24), nn.Linear(24, 32)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        for _ in range(2):
            x = x + self.down(torch.relu(self.up(x)))
        return self.head(torch.relu(self.again(torch.relu(self.block(x)))))


SEQUENCE = tensor(8, 20)
NETS = [
    Case("perceptron", Perceptron, tensor(20), 2),
    Case("vgg", lambda: vgg(False), image(), 5),
    Case("vgg_inplace", lambda: vgg(True), image(), 5),
    Case("resnet_conv", lambda: ResNet("conv", False), image(), 9),
    Case("resnet_conv_inplace", lambda: ResNet("conv", True), image(), 9),
    Case("resnet_pad", lambda: ResNet("pad", False), image(), 11),
    Case("resnet_pad_inplace", lambda: ResNet("pad", True), image(), 11),
    Case("group_norm_squeeze", GroupedSqueeze, image(), 4),
    Case("resnext", Bottleneck, image(), 4),
    Case("shuffle_v1", ShuffleV1, image()),
    Case("shuffle_v1_module", lambda: ShuffleV1(module=True), image()),
    Case("shuffle_v2", ShuffleV2, image()),
    Case("densenet", DenseNet, image(), 4),
    Case("unet_transposed", lambda: UNet(nn.ConvTranspose2d(16, 8, 2, 2)), image(), 4),
    Case("unet_upsample",
         lambda: UNet(nn.Sequential(nn.Upsample(scale_factor=2, mode="bilinear"),
                                    nn.Conv2d(16, 8, 1))), image(), 4),
    Case("pixel_shuffle", PixelShuffle, image(), 3),
    Case("lstm", lambda: Recurrent(nn.LSTM(20, 16, 2, batch_first=True), 16), SEQUENCE, 2),
    Case("gru", lambda: Recurrent(nn.GRU(20, 16, 2, batch_first=True), 16), SEQUENCE, 2),
    Case("rnn", lambda: Recurrent(nn.RNN(20, 16, 1), 16), SEQUENCE, 1),
    Case("lstm_both_ways",
         lambda: Recurrent(nn.LSTM(20, 8, 2, batch_first=True, bidirectional=True), 16),
         SEQUENCE, 4),
    Case("lstm_state", lambda: Recurrent(nn.LSTM(20, 16, 2, batch_first=True), 16, "state"),
         SEQUENCE, 2),
    Case("gru_state", lambda: Recurrent(nn.GRU(20, 16, 1, batch_first=True), 16, "state"),
         SEQUENCE, 1),
    Case("seq2seq", Seq2Seq, SEQUENCE, 1),
    Case("attention_timm", lambda: FusedAttention(split_timm), SEQUENCE, 4),
    Case("attention_bloom", lambda: FusedAttention(split_bloom), SEQUENCE, 4),
    Case("attention_rotary", RotaryAttention, SEQUENCE, 3),
    Case("attention_grouped_query", GroupedQuery, SEQUENCE, 5),
    Case("attention_torch", TorchAttention, SEQUENCE, 9),
    Case("tied_transpose", TiedTranspose, SEQUENCE, 2),
    Case("weight_norm", WeightNorm, SEQUENCE, 2),
    Case("experts_dense", DenseExperts, SEQUENCE, 3),
    Case("mixer", Mixer, SEQUENCE, 2),
    Case("activations", Activations, tensor(3, 12)),
    Case("assigned", Assigned, SEQUENCE),
    Case("dead", Dead, tensor(20), 1),
    Case("shared", Shared, SEQUENCE, 2),
]  # fmt: skip
