"""What the analysis knows about a value of the graph."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from hetmerge.tracing.axes import Dim, extent

Reference = tuple[str, int]  # (tensor, dim)
Origin = tuple[frozenset[Reference], ...]


@dataclass(eq=False, frozen=True)
class Val:
    """A tensor that depends on parameters: one `Dim` per dimension.

    ``origin`` is set while the value is computed from parameters alone; it names, per dimension,
    the parameter dimensions that run along it.
    """

    dims: tuple[Dim, ...]
    origin: Origin | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(extent(dim) for dim in self.dims)

    @property
    def rank(self) -> int:
        return len(self.dims)


@dataclass(eq=False, frozen=True)
class Const:
    """A tensor that depends on no parameter; it may vary only along the dimensions ``varies``."""

    shape: tuple[int, ...]
    varies: frozenset[int]
    label: str
    data: bool = False  # depends on the model's inputs

    @property
    def rank(self) -> int:
        return len(self.shape)


@dataclass(eq=False, frozen=True)
class Family:
    """Tensors stacked along dimension ``axis`` that need not share coordinates.

    A fused projection viewed as [3, heads, size] and then unbound is one.
    """

    members: tuple[Val, ...]
    axis: int

    @property
    def rank(self) -> int:
        return self.members[0].rank + 1

    @property
    def shape(self) -> tuple[int, ...]:
        inner = self.members[0].shape
        return (*inner[: self.axis], len(self.members), *inner[self.axis :])


Value = Val | Const | Family


def varying(shape: Sequence[int], label: str, *, data: bool = False) -> Const:
    """A constant about whose entries nothing is known."""
    sizes = tuple(int(n) for n in shape)
    return Const(sizes, frozenset(i for i, n in enumerate(sizes) if n > 1), label, data)


def is_weight(value: Value) -> bool:
    """Whether a value is computed from parameters alone."""
    return isinstance(value, Val) and value.origin is not None and any(value.origin)


def joined(origins: Iterable[frozenset[Reference]]) -> frozenset[Reference]:
    """Union of parameter references."""
    return frozenset[Reference]().union(*origins)
