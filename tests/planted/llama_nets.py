"""Llama-shaped networks in plain modules, so that nothing is cast to single precision."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

VOCABULARY = 40
EPS = 1e-6


class Norm(nn.Module):
    """RMSNorm; with `offset` 1 what is learned is the scale minus one."""

    def __init__(self, width: int, offset: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(width))
        self.offset = offset

    def forward(self, x: Tensor) -> Tensor:
        x = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + EPS)
        return x * (self.weight + 1.0) if self.offset else x * self.weight


class UnitNorm(Norm):
    """Divides by the root of the sum of squares."""

    def forward(self, x: Tensor) -> Tensor:
        return x / x.norm(dim=-1, keepdim=True) * self.weight


class Attention(nn.Module):
    """With `normed`, queries and keys pass a norm: of every head ("head", or for a root of a sum
    "unit", and "bare" without a scale) or of all of them together ("whole")."""

    def __init__(self, width: int, heads: int, groups: int, size: int, normed: str) -> None:
        super().__init__()
        self.size, self.normed = size, normed
        if normed and normed != "bare":
            make = UnitNorm if normed == "unit" else Norm
            counts = (heads, groups) if normed == "whole" else (1, 1)
            self.q_norm, self.k_norm = (make(n * size, 0.0) for n in counts)
        self.q_proj = nn.Linear(width, heads * size, bias=False)
        self.k_proj = nn.Linear(width, groups * size, bias=False)
        self.v_proj = nn.Linear(width, groups * size, bias=False)
        self.o_proj = nn.Linear(heads * size, width, bias=False)
        angles = torch.arange(16)[:, None] / 100 ** (torch.arange(size // 2) / (size // 2))
        angles = torch.cat([angles, angles], 1).double()
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        length = x.shape[1]
        q, k, v = self.q_proj(x), self.k_proj(x), self.v_proj(x)
        if self.normed == "whole":
            q, k = self.q_norm(q), self.k_norm(k)
        q, k, v = (y.view(len(x), length, -1, self.size).transpose(1, 2) for y in (q, k, v))
        if self.normed in ("head", "unit"):
            q, k = self.q_norm(q), self.k_norm(k)
        elif self.normed == "bare":
            q, k = (y / y.norm(dim=-1, keepdim=True) for y in (q, k))
        q, k = self.turn(q, length), self.turn(k, length)
        repeat = q.shape[1] // k.shape[1]
        k, v = (_repeated(x, repeat) for x in (k, v))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.o_proj(y.transpose(1, 2).reshape(len(x), length, -1))

    def turn(self, x: Tensor, length: int) -> Tensor:
        a, b = x.chunk(2, -1)
        return x * self.cos[:length] + torch.cat([-b, a], -1) * self.sin[:length]


def _repeated(x: Tensor, times: int) -> Tensor:
    if times == 1:
        return x
    return x[:, :, None].expand(-1, -1, times, -1, -1).reshape(len(x), -1, *x.shape[2:])


class Block(nn.Module):
    def __init__(
        self,
        width: int,
        hidden: int,
        heads: int,
        groups: int,
        offset: float,
        size: int,
        normed: str,
    ) -> None:
        super().__init__()
        self.norm1, self.norm2 = Norm(width, offset), Norm(width, offset)
        self.attention = Attention(width, heads, groups, size, normed)
        self.gate = nn.Linear(width, hidden, bias=False)
        self.up = nn.Linear(width, hidden, bias=False)
        self.down = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        y = self.norm2(x)
        return x + self.down(F.silu(self.gate(y)) * self.up(y))


class Llama(nn.Module):
    def __init__(
        self,
        layers: int,
        width: int,
        hidden: int = 20,
        heads: int = 3,
        groups: int | None = None,
        offset: float = 0.0,
        size: int = 4,
        normed: str = "",
    ) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, width)
        self.layers = nn.ModuleList(
            Block(width, hidden, heads, groups or heads, offset, size, normed)
            for _ in range(layers)
        )
        self.norm = Norm(width, offset)
        self.head = nn.Linear(width, VOCABULARY, bias=False)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids)
        for layer in self.layers:
            x = layer(x)
        return self.head(self.norm(x))


def llama(seed: int, *args: int, **kwargs: float | str) -> Llama:
    """In float64, with scales that are no identity."""
    torch.manual_seed(seed)
    model = Llama(*args, **kwargs).double().eval()  # type: ignore[arg-type]
    for module in model.modules():
        if isinstance(module, Norm):
            nn.init.uniform_(module.weight, 0.6 - module.offset, 1.4 - module.offset)
    return model.requires_grad_(False)


def rotated(model: Llama, width: int, seed: int = 0) -> Llama:
    """The same function with its stream turned in a space of `width` dimensions, and its heads and
    hidden units in another order; scales are folded into the layers behind them."""
    old = model.embed.weight.shape[1]
    torch.manual_seed(seed)
    turn = torch.linalg.qr(torch.randn(width, width, dtype=torch.float64))[0][:old]  # [old, width]
    loud = (width / old) ** 0.5  # leaves the mean square of a stream as it is
    first = model.layers[0]
    heads, groups = (
        x.weight.shape[0] // first.attention.size
        for x in (first.attention.q_proj, first.attention.k_proj)
    )
    found = llama(
        seed, len(model.layers), width, first.gate.weight.shape[0], heads, groups, model.norm.offset
    )

    def read(norm: Norm, weight: Tensor) -> Tensor:
        return (weight * (norm.weight + norm.offset)) @ turn / loud

    def write(weight: Tensor) -> Tensor:
        return loud * turn.T @ weight

    for norm in [m for m in found.modules() if isinstance(m, Norm)]:
        norm.weight.fill_(1 - norm.offset)
    found.embed.weight.copy_(model.embed.weight @ turn * loud)
    found.head.weight.copy_(read(model.norm, model.head.weight))
    for mine, theirs in zip(found.layers, model.layers, strict=True):
        a, b = mine.attention, theirs.attention
        group = torch.randperm(groups)
        blocks = torch.arange(heads * a.size).reshape(groups, -1)[group].flatten()
        keys = torch.arange(groups * a.size).reshape(groups, -1)[group].flatten()
        for name, order in (("q_proj", blocks), ("k_proj", keys), ("v_proj", keys)):
            getattr(a, name).weight.copy_(read(theirs.norm1, getattr(b, name).weight)[order])
        a.o_proj.weight.copy_(write(b.o_proj.weight)[:, blocks])
        units = torch.randperm(len(theirs.gate.weight))
        for name in ("gate", "up"):
            getattr(mine, name).weight.copy_(
                read(theirs.norm2, getattr(theirs, name).weight)[units]
            )
        mine.down.weight.copy_(write(theirs.down.weight)[:, units])
    return found


def tokens(batches: int = 2, count: int = 12, length: int = 10) -> list[Tensor]:
    generator = torch.Generator().manual_seed(7)
    return [torch.randint(VOCABULARY, (count, length), generator=generator) for _ in range(batches)]
