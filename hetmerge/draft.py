"""The tensors of a merged model that grows on disk: finished ones are read, others projected."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from hetmerge.network import release
from hetmerge.progress import Progress
from hetmerge.projection import Projector
from hetmerge.shard_writer import ShardWriter
from hetmerge.weights import KEPT, State

BLOCK = 1 << 23  # numbers of a tensor that are projected at a time


class Draft(State):
    """The merged tensors by name.

    What is not finished is projected when it is asked for, and rounded as it will be when it is
    written, so a merge that was stopped goes on with the same numbers.

    Args:
        projector: from the parents' tensors to merged ones.
        writer: of the shards.
        owners: name -> the name that its tensor is stored under; tied ones share it.
        buffers: tensors that are computed and not stored.
        unused: tensors that no output depends on, whose values come from a parent.
        dtype: of floating-point tensors while they are used.
    """

    def __init__(
        self,
        projector: Projector,
        writer: ShardWriter,
        owners: Mapping[str, str],
        buffers: Mapping[str, Tensor],
        unused: Mapping[str, Tensor],
        dtype: torch.dtype,
    ) -> None:
        self.projector, self.writer, self.dtype = projector, writer, dtype
        self.device = projector.setting.parents[0].state.device
        self._owners, self._unused = dict(owners), dict(unused)
        self._buffers = {name: tensor.to(self.device) for name, tensor in buffers.items()}
        self._made = projector.setting.skeleton.graph.tensors
        self._source = {b: a for a, b in self._owners.items() if a in self._made}
        self._kept: dict[str, Tensor] = {}
        self._put: dict[str, Tensor] = {}  # since the last commit
        self._before = frozenset(writer.finished)

    def __getitem__(self, name: str) -> Tensor:
        if name in self._buffers:
            return self._buffers[name]
        owner = self._owners[name]
        if owner in self._put:
            return self._put[owner]
        if owner in self._kept:
            return self._kept[owner]
        if owner in self.writer.finished:
            tensor = self._wide(self.writer.places[owner].read())
        elif owner in self._source:
            tensor = self._projected(owner)
        else:
            tensor = self._wide(self._unused[owner])
        if tensor.numel() * tensor.element_size() <= KEPT:
            self._kept[owner] = tensor
        return tensor

    def _projected(self, owner: str) -> Tensor:
        """A large tensor in blocks: its parents' are not in memory as a whole then."""
        like, source = self.writer.like[owner], self._source[owner]
        if like.numel() * self.dtype.itemsize <= KEPT:
            return self._wide(self.projector.tensor(source).to(like.dtype))
        found = torch.empty(like.shape, dtype=self.dtype, device=self.device)
        for block, part in self.projector.in_blocks(source, BLOCK):
            found[block.start : block.stop] = self._wide(part.to(like.dtype))
        return found

    def __iter__(self) -> Iterator[str]:
        return iter({**self._owners, **self._buffers})

    def __len__(self) -> int:
        return len({**self._owners, **self._buffers})

    def put(self, name: str, tensor: Tensor) -> None:
        owner = self._owners[name]
        self._kept.pop(owner, None)
        self.writer.write(owner, tensor)
        self._put[owner] = self._wide(tensor.to(self.writer.like[owner].dtype))

    def commit(self) -> None:
        if self._put:
            self.writer.finish(self._put)
            self._put.clear()

    def is_final(self, name: str) -> bool:
        return self._owners[name] in self._before

    def rows(self, name: str, index: Tensor) -> Tensor:
        """Rows of a tensor that refit leaves alone; it is finished by this."""
        owner = self._owners[name]
        self.settle(owner)
        wanted, where = index.unique(return_inverse=True)
        return self._wide(self.writer.places[owner].read(wanted))[where]

    def release(self) -> None:
        self._kept.clear()

    def settle(self, owner: str) -> None:
        """Finish a tensor as projection gives it."""
        if owner in self.writer.finished:
            return
        if owner in self._source:
            for block, part in self.projector.in_blocks(self._source[owner], BLOCK):
                self.writer.write(owner, part, block if part.dim() > 1 else None)
        else:
            self.writer.write(owner, self._unused[owner])
        self.writer.finish([owner])

    def close(self, progress: Progress) -> None:
        """Finish every tensor and the index."""
        for owner in progress.track(list(self.writer.like), "writing"):
            self.settle(owner)
            release(self.projector.setting.parents)
        self.writer.close()

    def _wide(self, tensor: Tensor) -> Tensor:
        found = tensor.to(self.device)
        return found.to(self.dtype) if found.is_floating_point() else found
