"""Spaces: orderings of features that several tensor axes share."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Occurrence:
    """Where a space is used: ``path`` leads through the parts of the dimension's expression."""

    tensor: str
    dim: int
    path: tuple[int, ...]


@dataclass(frozen=True)
class Space:
    """An ordering of ``size`` features, shared by all its occurrences."""

    index: int
    name: str
    size: int
    free: bool  # may be permuted
    structure: tuple[int, ...]  # outer spaces per index of which this ordering may differ
    pins: tuple[str, ...]  # why it is not free
    where: tuple[Occurrence, ...]
