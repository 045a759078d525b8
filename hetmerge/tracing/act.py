"""Permute tensors: new = old[index], the index evaluated from the structure of each dimension."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from hetmerge.errors import InputError
from hetmerge.tracing.expr import Concat, Expr, Leaf, Product, leaves, size
from hetmerge.tracing.spaces import Space


def check(spaces: Sequence[Space], permutations: Mapping[int, Tensor]) -> None:
    """Raise `InputError` unless every entry is a permutation of the right shape."""
    for index, permutation in permutations.items():
        if not 0 <= index < len(spaces):
            raise InputError(f"no space {index}; there are {len(spaces)}")
        space = spaces[index]
        expected = [*(spaces[outer].size for outer in space.structure), space.size]
        if list(permutation.shape) != expected:
            raise InputError(
                f"permutation of {space.name}: shape {list(permutation.shape)}, needs {expected}"
            )
        ordered = torch.arange(space.size, device=permutation.device).expand(permutation.shape)
        if not torch.equal(permutation.sort(-1).values, ordered.to(permutation.dtype)):
            raise InputError(f"permutation of {space.name} is not a permutation")


def touched(dims: Sequence[Expr], permutations: Mapping[int, Tensor]) -> bool:
    """Whether any permuted space occurs in a tensor."""
    return any(leaf.space in permutations for dim in dims for leaf in leaves(dim))


def permute_tensor(
    tensor: Tensor,
    dims: Sequence[Expr],
    spaces: Sequence[Space],
    permutations: Mapping[int, Tensor],
) -> Tensor:
    """The tensor in permuted coordinates."""
    rank = len(dims)
    tops = [_top(dim, _coordinate(i, size(dim), rank)) for i, dim in enumerate(dims)]
    index: list[Tensor] = []
    for i, dim in enumerate(dims):
        context: dict[int, Tensor] = {}
        for j, top in enumerate(tops):
            if j != i:
                context.update(top)
        coordinate = _coordinate(i, size(dim), rank)
        index.append(_source(dim, coordinate, context, spaces, permutations))
    if all(source.numel() == n for source, n in zip(index, tensor.shape, strict=True)):
        for i, source in enumerate(index):
            if touched([dims[i]], permutations):
                tensor = tensor.index_select(i, source.reshape(-1).to(tensor.device))
        return tensor
    return tensor[tuple(source.to(tensor.device) for source in index)]


def _coordinate(position: int, length: int, rank: int) -> Tensor:
    shape = [1] * rank
    shape[position] = length
    return torch.arange(length).reshape(shape)


def _digits(dim: Expr, coordinate: Tensor) -> list[tuple[Expr, Tensor]]:
    """Coordinates along each factor of a product, outer to inner."""
    parts = dim.parts if isinstance(dim, Product) else (dim,)
    found: list[tuple[Expr, Tensor]] = []
    for part in reversed(parts):
        found.append((part, coordinate % size(part)))
        coordinate = coordinate // size(part)
    return found[::-1]


def _top(dim: Expr, coordinate: Tensor) -> dict[int, Tensor]:
    digits = _digits(dim, coordinate)
    return {part.space: digit for part, digit in digits if isinstance(part, Leaf)}


def _source(
    dim: Expr,
    coordinate: Tensor,
    context: Mapping[int, Tensor],
    spaces: Sequence[Space],
    permutations: Mapping[int, Tensor],
) -> Tensor:
    digits = _digits(dim, coordinate)
    own = {part.space: digit for part, digit in digits if isinstance(part, Leaf)}
    context = {**context, **own}
    source = torch.zeros_like(coordinate)
    for part, digit in digits:
        if isinstance(part, Leaf):
            if part.space in permutations:
                outer = spaces[part.space].structure
                where = (*(context[i] for i in outer), digit)
                digit = permutations[part.space].cpu()[where]
        elif isinstance(part, Concat):
            digit = _concat_source(part, digit, context, spaces, permutations)
        else:
            digit = _source(part, digit, context, spaces, permutations)
        source = source * size(part) + digit
    return source


def _concat_source(
    dim: Concat,
    coordinate: Tensor,
    context: Mapping[int, Tensor],
    spaces: Sequence[Space],
    permutations: Mapping[int, Tensor],
) -> Tensor:
    source = coordinate
    start = 0
    for part in dim.parts:
        stop = start + size(part)
        inside = (coordinate - start).clamp(0, stop - start - 1)
        moved = start + _source(part, inside, context, spaces, permutations)
        source = torch.where((coordinate >= start) & (coordinate < stop), moved, source)
        start = stop
    return source
