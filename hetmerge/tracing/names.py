"""Readable, unique, deterministic names of spaces."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from hetmerge.tracing.spaces import Occurrence


def names(
    where: Mapping[int, Sequence[Occurrence]], consumed: frozenset[tuple[str, int]]
) -> dict[int, str]:
    """Name every space after the first tensor that produces it.

    ``conv1`` is the output of ``conv1.weight``; ``conv1.in`` an input that no tensor produces;
    ``conv1.dim2`` another dimension; ``q_proj:0``, ``q_proj:1`` are several spaces in one.
    """
    bases = {index: _base(places, consumed) for index, places in where.items()}
    shared: dict[str, list[int]] = {}
    for index, base in bases.items():
        shared.setdefault(base, []).append(index)
    return {
        index: base if len(shared[base]) == 1 else f"{base}:{shared[base].index(index)}"
        for index, base in bases.items()
    }


def _base(places: Sequence[Occurrence], consumed: frozenset[tuple[str, int]]) -> str:
    produced = [place for place in places if (place.tensor, place.dim) not in consumed]
    if not produced:
        return f"{_stem(places[0].tensor)}.in"
    place = next((p for p in produced if _is_output(p, consumed)), produced[0])
    stem = _stem(place.tensor)
    return stem if _is_output(place, consumed) else f"{stem}.dim{place.dim}"


def _is_output(place: Occurrence, consumed: frozenset[tuple[str, int]]) -> bool:
    """Whether the dimension is the first that the tensor's operator does not contract."""
    first = next(i for i in range(place.dim + 1) if (place.tensor, i) not in consumed)
    return first == place.dim


def _stem(tensor: str) -> str:
    head, _, last = tensor.rpartition(".")
    return head if head and last in {"weight", "bias"} else tensor
