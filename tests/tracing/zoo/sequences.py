"""Hand-written networks over sequences: recurrent, attention, experts, tied weights."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm


class Recurrent(nn.Module):
    def __init__(self, layer: nn.Module, features: int, read: str = "all") -> None:
        super().__init__()
        self.layer, self.read, self.head = layer, read, nn.Linear(features, 5)

    def forward(self, x: Tensor) -> Tensor:
        out, state = self.layer(x)
        if self.read == "all":
            return self.head(out)
        return self.head(state[0][-1] if isinstance(state, tuple) else state[-1])


class Seq2Seq(nn.Module):
    """A decoder that starts from the encoder's states, behind a position table."""

    def __init__(self) -> None:
        super().__init__()
        self.place = nn.Parameter(torch.randn(8, 20))
        self.encoder = nn.LSTM(20, 12, batch_first=True)
        self.decoder = nn.LSTM(20, 12, batch_first=True)
        self.head = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.place
        _, state = self.encoder(x)
        return self.head(self.decoder(x, state)[0].mean(1))


def split_timm(qkv: Tensor, heads: int) -> list[Tensor]:
    n, t, c = qkv.shape
    return list(qkv.reshape(n, t, 3, heads, c // 3 // heads).permute(2, 0, 3, 1, 4).unbind(0))


def split_bloom(qkv: Tensor, heads: int) -> list[Tensor]:
    n, t, c = qkv.shape
    return [z.transpose(1, 2) for z in qkv.view(n, t, heads, 3, c // 3 // heads).unbind(3)]


class FusedAttention(nn.Module):
    def __init__(self, split: Callable[[Tensor, int], list[Tensor]]) -> None:
        super().__init__()
        self.embed, self.qkv = nn.Linear(20, 32), nn.Linear(32, 96)
        self.out, self.head, self.split = nn.Linear(32, 32), nn.Linear(32, 5), split

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        q, k, v = self.split(self.qkv(x), 4)
        mixed = ((q @ k.transpose(-2, -1)) * 0.3).softmax(-1) @ v
        return self.head(x + self.out(mixed.transpose(1, 2).reshape(x.shape)))


class RotaryAttention(nn.Module):
    """Interleaved rotary positions and einsum."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.qkv = nn.Linear(20, 32), nn.Linear(32, 96)
        self.out, self.head = nn.Linear(32, 32), nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        n, t, c = x.shape
        q, k, v = self.qkv(x).view(n, t, 4, 3, 8).unbind(3)
        angle = torch.arange(t)[:, None, None] / 10 ** torch.arange(4)[None, None, :]

        def rotate(z: Tensor) -> Tensor:
            a, b = z[..., ::2], z[..., 1::2]
            rotated = (a * angle.cos() - b * angle.sin(), a * angle.sin() + b * angle.cos())
            return torch.stack(rotated, -1).flatten(-2)

        scores = torch.einsum("bqhd,bkhd->bhqk", rotate(q), rotate(k)).softmax(-1)
        mixed = torch.einsum("bhqk,bkhd->bqhd", scores, v)
        return self.head(x + self.out(mixed.reshape(n, t, c)))


class GroupedQuery(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.q, self.kv = nn.Linear(20, 32), nn.Linear(32, 32), nn.Linear(32, 32)
        self.out, self.head = nn.Linear(32, 32), nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        n, t, c = x.shape
        q = self.q(x).view(n, t, 4, 8).transpose(1, 2)
        k, v = (z.view(n, t, 2, 8).transpose(1, 2) for z in self.kv(x).chunk(2, -1))
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        return self.head(x + self.out(mixed.transpose(1, 2).reshape(n, t, c)))


class TorchAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Linear(20, 32), nn.Linear(32, 5)
        self.layer = nn.TransformerEncoderLayer(32, 4, 48, batch_first=True)
        self.attention = nn.MultiheadAttention(32, 4, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer(self.embed(x))
        return self.head(self.attention(x, x, x, need_weights=False)[0])


class TiedTranspose(nn.Module):
    """A square weight used twice, once transposed; and a tied bottleneck."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.head = nn.Linear(20, 32), nn.Linear(32, 5)
        self.w, self.v = nn.Parameter(torch.randn(32, 32)), nn.Parameter(torch.randn(32, 24))

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        x = torch.relu(x @ self.w) + x
        x = torch.tanh(x @ self.w.t())
        return self.head(torch.relu(x @ self.v) @ self.v.t())


class TiedLanguageModel(nn.Module):
    """Input and output embeddings are one parameter under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.inner = nn.Embedding(40, 16), nn.Linear(16, 24)
        self.back, self.head = nn.Linear(24, 16), nn.Linear(16, 40, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, input_ids: Tensor) -> Tensor:
        x = self.embed(input_ids)
        return self.head(x + self.back(torch.relu(self.inner(x))))


class WeightNorm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = weight_norm(nn.Linear(20, 32)), weight_norm(nn.Linear(32, 16))
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.b(torch.relu(self.a(x)))))


class DenseExperts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.router, self.head = nn.Linear(20, 32), nn.Linear(32, 4), nn.Linear(32, 5)
        self.up = nn.Parameter(torch.randn(4, 24, 32))
        self.down = nn.Parameter(torch.randn(4, 32, 24))

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        gate = self.router(x).softmax(-1)
        y = torch.einsum("efd,bnd->bnef", self.up, x).relu()
        return self.head(x + torch.einsum("edf,bnef,bne->bnd", self.down, y, gate))


class Mixer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Linear(20, 32), nn.Linear(32, 5)
        self.t1, self.t2 = nn.Linear(8, 24), nn.Linear(24, 8)
        self.place = nn.Parameter(torch.randn(1, 8, 32))

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x) + self.place
        x = x + self.t2(F.gelu(self.t1(x.transpose(1, 2)))).transpose(1, 2)
        return self.head(x.mean(1))
