"""Tensors of a network by name: held by its module, or read from a checkpoint when asked for."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from hetmerge.errors import InputError
from hetmerge.shards import Stored

KEPT = 1 << 28  # bytes of a tensor above which it is read again rather than kept


class State(Mapping[str, Tensor]):
    """Parameters and buffers by name, tied ones under each of their names, on one device.

    Attributes:
        device: where they are.
        dtype: of floating-point parameters.
    """

    device: torch.device
    dtype: torch.dtype

    @abstractmethod
    def put(self, name: str, tensor: Tensor) -> None:
        """Give a tensor other values, under all of its names."""

    def scale(self, name: str, dim: int, factor: Tensor) -> None:
        """Multiply a matrix by a vector along one of its dimensions."""
        tensor = self[name]
        self.put(name, tensor * _along(factor, dim, tensor.dim()))

    def rows(self, name: str, index: Tensor) -> Tensor:
        """The rows `index` [...] of a tensor, [..., columns]."""
        return self[name][index]

    def release(self) -> None:
        """Forget what can be read again."""

    def commit(self) -> None:
        """What was put since the last commit belongs together and is complete."""

    def is_final(self, name: str) -> bool:
        """The tensor is as the merge will leave it, from an earlier run that was stopped."""
        return False


class Resident(State):
    """The tensors of a module in memory."""

    def __init__(self, tensors: Iterable[tuple[str, Tensor]]) -> None:
        self._tensors = dict(tensors)
        first = next(iter(self._tensors.values()), torch.empty(0))
        self.device, self.dtype = first.device, first.dtype

    def __getitem__(self, name: str) -> Tensor:
        return self._tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    def put(self, name: str, tensor: Tensor) -> None:
        self._tensors[name].copy_(tensor)


@dataclass(frozen=True)
class Repeat:
    """Rows in equal blocks, each of which stands there so many times."""

    blocks: int
    times: int

    def of(self, tensor: Tensor) -> Tensor:
        """[rows, ...] -> [rows * times, ...]."""
        parts = tensor.reshape(self.blocks, -1, *tensor.shape[1:])
        return parts.repeat_interleave(self.times, 0).flatten(0, 1)

    def source(self, index: Tensor, rows: int) -> Tensor:
        """The rows, of so many, that those at `index` are copies of."""
        size = rows // self.blocks
        return index // (size * self.times) * size + index % size


class OnDisk(State):
    """The tensors of a checkpoint, read one by one; what was read lasts until `release`.

    Args:
        stored: name -> where it lies; several names may share one place.
        buffers: tensors that are computed and not stored.
        dtype: of floating-point tensors.
        label: the checkpoint's name in messages.
        repeats: name -> how its stored rows are repeated.
        device: where tensors are given; the buffers are moved there.
    """

    def __init__(
        self,
        stored: Mapping[str, Stored],
        buffers: Mapping[str, Tensor],
        dtype: torch.dtype,
        label: str,
        repeats: Mapping[str, Repeat] | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        self.stored, self.dtype, self.label = dict(stored), dtype, label
        self.device = torch.empty(0, device=device).device  # "cuda" is "cuda:0" from here on
        self._repeats = {self.stored[name]: found for name, found in (repeats or {}).items()}
        self._own = {name: tensor.to(self.device) for name, tensor in buffers.items()}
        self._kept: dict[Stored, Tensor] = {}
        self._scales: dict[Stored, list[tuple[int, Tensor]]] = {}
        self._sound: set[Stored] = set()

    def __getitem__(self, name: str) -> Tensor:
        if name in self._own:
            return self._own[name]
        place = self.stored[name]
        if place in self._kept:
            return self._kept[place]
        found = self._checked(name, self._cast(place.read()))
        if place in self._repeats:
            found = self._repeats[place].of(found)
        tensor = self._scaled(place, found)
        if tensor.numel() * tensor.element_size() <= KEPT:
            self._kept[place] = tensor
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter({**self.stored, **self._own})

    def __len__(self) -> int:
        return len({**self.stored, **self._own})

    def put(self, name: str, tensor: Tensor) -> None:
        place = self.stored.get(name)
        names = [n for n, found in self.stored.items() if found == place] if place else [name]
        self._own.update(dict.fromkeys(names, tensor))

    def scale(self, name: str, dim: int, factor: Tensor) -> None:
        if name in self._own:
            super().scale(name, dim, factor)
            return
        self._kept.pop(self.stored[name], None)
        self._scales.setdefault(self.stored[name], []).append((dim, factor))

    def _scaled(self, place: Stored, tensor: Tensor) -> Tensor:
        for dim, factor in self._scales.get(place, ()):
            tensor = tensor * _along(factor, dim, tensor.dim())
        return tensor

    def rows(self, name: str, index: Tensor) -> Tensor:
        if name in self._own or index.numel() == 0:
            return self[name][index]
        place = self.stored[name]
        repeat = self._repeats.get(place)
        source = repeat.source(index, place.shape[0]) if repeat else index
        wanted, where = source.unique(return_inverse=True)
        found = _finite(self._cast(place.read(wanted)), self.label, name)[where]
        rank = len(place.shape)
        for dim, factor in self._scales.get(place, ()):
            ones = [1] * (rank - 1 - dim)
            found = found * (factor[index] if dim == 0 else factor).unflatten(-1, (-1, *ones))
        return found

    def release(self) -> None:
        self._kept.clear()

    def repeated(self, repeats: Mapping[str, Repeat]) -> OnDisk:
        """The same tensors, as they are now, with repeated rows."""
        own = {n: repeats[n].of(t) if n in repeats else t for n, t in self._own.items()}
        stored = {n: found for n, found in repeats.items() if n not in own}
        found = OnDisk(self.stored, own, self.dtype, self.label, stored, self.device)
        found._scales = {place: list(scales) for place, scales in self._scales.items()}
        return found

    def _cast(self, tensor: Tensor) -> Tensor:
        found = tensor.to(self.device)  # as it is stored: fewer bytes to move
        return found.to(self.dtype) if found.is_floating_point() else found

    def _checked(self, name: str, tensor: Tensor) -> Tensor:
        place = self.stored[name]
        if place not in self._sound:
            _finite(tensor, self.label, name)
            self._sound.add(place)
        return tensor


def _along(factor: Tensor, dim: int, rank: int) -> Tensor:
    shape = [1] * rank
    shape[dim] = -1
    return factor.reshape(shape)


def tensors_of(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Every parameter and buffer with its name, tied ones under each of their names."""
    yield from model.named_parameters(remove_duplicate=False)
    yield from model.named_buffers(remove_duplicate=False)


def _finite(tensor: Tensor, label: str, name: str) -> Tensor:
    if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
        raise InputError(f"{label}: tensor {name!r} holds NaN or infinity; weights must be finite")
    return tensor
