"""Small adversarial networks: one operator or clash of structure between two linear layers."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.case import Case, tensor

Body = Callable[["Sandwich", Tensor], Tensor]


class Sandwich(nn.Module):
    """Linear, an operator on [2, 8, 32] features, linear; with spare parameters."""

    def __init__(self, body: Body, width: int = 32) -> None:
        super().__init__()
        self.a, self.b, self.body = nn.Linear(20, 32), nn.Linear(width, 5), body
        self.n, self.w = nn.Parameter(torch.randn(8)), nn.Parameter(torch.randn(32, 32))
        self.u, self.v = nn.Parameter(torch.randn(32, 4)), nn.Parameter(torch.randn(4, 32))
        self.heads = nn.Parameter(torch.randn(4, 8))
        self.register_buffer("k", torch.linspace(0.5, 2.0, 32))

    def forward(self, x: Tensor) -> Tensor:
        return self.b(torch.tanh(self.body(self, torch.tanh(self.a(x)))))


def split(x: Tensor) -> Tensor:
    """[..., 32] as [..., 4, 8]."""
    return x.unflatten(-1, (4, 8))


def assigned(x: Tensor) -> Tensor:
    out = x.new_zeros(2, 8, 32)
    view = out[..., :16]
    view.add_(x[..., 16:])
    return out + x


def select_assigned(x: Tensor) -> Tensor:
    out = split(x).clone()
    out[..., 1, :] = out[..., 0, :] * 2
    return out.flatten(-2)


def halves_then_blocks(x: Tensor) -> Tensor:
    left, right = x[..., :16], x[..., 16:]
    blocks = x.unflatten(-1, (2, 16)).sum(-2)
    return left * torch.sigmoid(right) + blocks


def drop_rows(net: Sandwich, x: Tensor) -> Tensor:
    chosen = (x @ net.u).topk(2, -1).indices  # [2, 8, 2] of 4
    return x + net.v[chosen].sum(-2)


def rotated(net: Sandwich, x: Tensor) -> Tensor:
    """Rotary embeddings as complex numbers: four heads of four pairs."""
    turns = torch.polar(torch.ones(4), torch.linspace(0.1, 2.0, 4)).to(torch.complex128)
    pairs = torch.view_as_complex(split(x).unflatten(-1, (4, 2)))
    return torch.view_as_real(pairs * turns).flatten(-3)


BODIES: dict[str, tuple[Body, int]] = {
    # order matters along a dimension
    "flip": (lambda s, x: x + x.flip(-1), 32),
    "roll": (lambda s, x: x * x.roll(1, -1), 32),
    "cumsum": (lambda s, x: x.cumsum(-1), 32),
    "cumsum_heads": (lambda s, x: (split(x).cumsum(-2) * s.heads).flatten(-2), 32),
    "roll_heads": (lambda s, x: (split(x).roll(1, -2) * s.heads).flatten(-2), 32),
    "flip_heads": (lambda s, x: (split(x).flip(-2) * s.heads).flatten(-2), 32),
    "tril": (lambda s, x: x @ s.w.tril(), 32),
    "diagonal": (lambda s, x: x + s.w.diagonal(), 32),
    "diagonal_index": (lambda s, x: x * s.w[torch.arange(32), torch.arange(32)], 32),
    "stride": (lambda s, x: x[..., ::2] * x[..., 1::2], 16),
    "stride_three": (lambda s, x: x[..., 1::3], 11),
    "unfold": (lambda s, x: x.unfold(-1, 4, 4).mean(-1), 8),
    "max_pool": (lambda s, x: F.max_pool1d(x, 2), 16),
    "max_pool_no_batch": (lambda s, x: F.max_pool1d(x[0], 2), 16),
    "average_pool_heads": (lambda s, x: F.avg_pool2d(split(x) * s.heads, 2).flatten(-2), 8),
    "convolve_features": (lambda s, x: F.conv1d(x, s.w[:8, :24].unflatten(1, (8, 3)), padding=1),
                          32),
    "reflect": (lambda s, x: F.pad(x, (1, 1), mode="reflect")[..., 1:33], 32),
    "kron": (lambda s, x: x @ torch.kron(s.w[:4, :4], s.w[:8, :8]), 32),
    "fft": (lambda s, x: torch.fft.rfft(x).abs(), 17),
    "response_norm": (lambda s, x: F.local_response_norm(x.transpose(1, 2), 3).transpose(1, 2), 32),
    "scatter": (lambda s, x: x.scatter(-1, torch.zeros(2, 8, 1, dtype=torch.long), 1.0), 32),
    "gather": (lambda s, x: x.gather(-1, torch.arange(16).expand(2, 8, 16)), 16),
    "choose": (lambda s, x: x[..., torch.tensor([3, 1, 2])], 3),
    "index_select": (lambda s, x: x.index_select(-1, torch.tensor([3, 1, 2])), 3),
    "argmax": (lambda s, x: x * F.one_hot(x.argmax(-1), 32), 32),
    "max_position": (lambda s, x: x * x.max(-1, keepdim=True)[1], 32),
    "topk_rows": (drop_rows, 32),
    # symmetric in a dimension
    "sort": (lambda s, x: x.sort(-1)[0], 32),
    "topk": (lambda s, x: x.topk(8, -1)[0], 8),
    "max_value": (lambda s, x: x * x.max(-1, keepdim=True)[0], 32),
    "variance": (lambda s, x: x / x.var(-1, keepdim=True), 32),
    "logsumexp": (lambda s, x: x - x.logsumexp(-1, keepdim=True), 32),
    "softmax_heads": (lambda s, x: split(x).softmax(-2).flatten(-2), 32),
    "norm_heads": (lambda s, x: (F.normalize(split(x), dim=-1) * s.n).flatten(-2), 32),
    "layer_norm_heads": (lambda s, x: F.layer_norm(split(x).mT, (4,)).mT.flatten(-2), 32),
    "complex_rotary": (rotated, 32),
    "sum_heads": (lambda s, x: split(x).sum(-2), 8),
    "rms_norm": (lambda s, x: F.rms_norm(x, (32,), s.w[0]), 32),
    "group_norm": (lambda s, x: F.group_norm(x.transpose(1, 2), 4).transpose(1, 2), 32),
    "prelu": (lambda s, x: F.prelu(x.transpose(1, 2), s.w[0]).transpose(1, 2), 32),
    "batch_norm_constants": (
        lambda s, x: F.batch_norm(x.transpose(1, 2), s.k, s.k + 1).transpose(1, 2), 32),
    # a dimension meets itself
    "gram": (lambda s, x: (x.unsqueeze(-1) * x.unsqueeze(-2))[..., 0], 32),
    "gram_sum": (lambda s, x: (x.unsqueeze(-1) * x.unsqueeze(-2)).sum(-2), 32),
    "gram_heads": (lambda s, x: ((split(x) @ split(x).mT) @ split(x)).flatten(-2), 32),
    "gram_heads_einsum": (
        lambda s, x: torch.einsum("bnhd,bngd->bnhg", split(x), split(x)).flatten(-2), 16),
    "self_attention": (lambda s, x: (x @ x.transpose(1, 2)).softmax(-1) @ x, 32),
    "symmetric": (lambda s, x: x @ (s.w + s.w.t()), 32),
    "diagonal_einsum": (lambda s, x: torch.einsum("bnd,dd->bnd", x, s.w), 32),
    "low_rank": (lambda s, x: x @ (s.w + s.u @ s.v), 32),
    "distances": (lambda s, x: torch.cdist(x, s.w), 32),
    "weight_by_weight": (lambda s, x: x * (s.w @ s.w[0]), 32),
    "outer": (lambda s, x: x @ torch.outer(s.w[0], s.w[1]), 32),
    "residual_heads": (lambda s, x: x + (split(x) * s.heads).flatten(-2) @ s.w, 32),
    # clashes of structure
    "halves": (lambda s, x: x[..., :16] * x[..., 16:], 16),
    "halves_and_middle": (
        lambda s, x: torch.cat([x[..., :16] * x[..., 16:], x[..., 8:24]], -1), 32),
    "halves_then_blocks": (lambda s, x: halves_then_blocks(x), 16),
    "shuffled_residual": (lambda s, x: x + x.unflatten(-1, (8, 4)).mT.flatten(-2), 32),
    "shuffled_residual_twice": (
        lambda s, x: x + split(x).mT.flatten(-2) + x.unflatten(-1, (8, 4)).mT.flatten(-2), 32),
    "interleaved_halves": (
        lambda s, x: torch.stack([x[..., :16], x[..., 16:]], -1).flatten(-2) + x, 32),
    "chunks_reversed": (lambda s, x: torch.cat(x.chunk(4, -1)[::-1], -1) + x, 32),
    "uneven_view": (lambda s, x: x[..., :24].reshape(2, 16, 12).reshape(2, 8, 24), 24),
    "batch_into_features": (lambda s, x: x.reshape(4, 4, 32).transpose(1, 2).reshape(4, 8, 16), 16),
    "pad": (lambda s, x: F.pad(F.pad(x[..., :16], (4, 4)), (4, 4)) + x, 32),
    "pad_flip": (lambda s, x: F.pad(x[..., :16], (8, 8)) + x.flip(-1), 32),
    "pad_and_crop": (lambda s, x: F.pad(x, (2, 2))[..., 1:33], 32),
    "repeat": (lambda s, x: x.repeat(1, 1, 2)[..., 16:48], 32),
    "repeat_interleave": (lambda s, x: x.repeat_interleave(2, -1)[..., :32], 32),
    "tile": (lambda s, x: torch.cat([x, x], -1)[..., 8:40], 32),
    "expand": (lambda s, x: (x.unsqueeze(-2).expand(2, 8, 4, 32) * s.w[:4]).flatten(-2), 128),
    "select": (lambda s, x: x.view(2, 8, 2, 16).select(2, 1), 16),
    "family_of_two": (lambda s, x: torch.mul(*x.view(2, 8, 2, 16).unbind(2)), 16),
    "family_restacked": (lambda s, x: torch.stack(x.view(2, 8, 2, 16).unbind(2), 2).flatten(2), 32),
    "head_matmul": (lambda s, x: (split(x) @ s.w[:8, :8]).flatten(-2), 32),
    "across_heads": (lambda s, x: (split(x).mT @ s.w[:4, :4]).flatten(-2), 32),
    "head_einsum": (
        lambda s, x: torch.einsum("bnhd,de->bnhe", split(x), s.w[:8, 8:16]).flatten(-2), 32),
    "head_rows": (lambda s, x: torch.einsum("...hd,hd->...h", split(x), s.heads), 4),
    "gate_by_group": (
        lambda s, x: x.masked_fill(
            split(x).sum(-1, keepdim=True).expand(2, 8, 4, 8).flatten(-2) > 0, 0.0), 32),
    # constants
    "buffer": (lambda s, x: x * s.k, 32),
    "positions": (lambda s, x: x + torch.linspace(0, 1, 32), 32),
    "where": (lambda s, x: torch.where(torch.arange(32) < 5, x, 0 * x), 32),
    "uniform": (lambda s, x: x * torch.ones(32, dtype=x.dtype), 32),
    "triangle_row": (lambda s, x: x * torch.ones(32, 32, dtype=x.dtype).tril()[3], 32),
    "constant_rows": (
        lambda s, x: x + torch.zeros(8, 1).expand(8, 32) + torch.arange(8.0)[:, None], 32),
    # in place
    "in_place_view": (lambda s, x: split(x).mul_(s.n).flatten(-2), 32),
    "in_place_slice": (lambda s, x: assigned(x), 32),
    "in_place_select": (lambda s, x: select_assigned(x), 32),
    "in_place_fill": (lambda s, x: x.clone().fill_(1.0) + x, 32),
}  # fmt: skip

UNKNOWN = {
    "fft": {"fft_rfft"},
    "scatter": {"scatter"},
    "kron": {"kron"},
    "repeat": {"slice"},  # cuts inside a repeated block
}
SOFT: dict[str, set[str]] = {
    "stride": {"a:1"},  # a product does not see which parity is which
    "argmax": {"a"},  # a one-hot code of the extreme position follows the features
}
IDLE = {  # features that the operator drops
    "uneven_view": {"a:2"},
    "repeat_interleave": {"a:1"},
    "select": {"a:0"},
}


def case(name: str) -> Case:
    body, width = BODIES[name]
    return Case(
        f"op_{name}",
        lambda: Sandwich(body, width),
        tensor(8, 20),
        unknown=frozenset(UNKNOWN.get(name, ())),
        soft=frozenset(SOFT.get(name, ())),
        idle=frozenset(IDLE.get(name, ())),
    )


OPS = [case(name) for name in BODIES]
