"""Readable, unique, deterministic names of spaces."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set

from hetmerge.tracing.spaces import Occurrence


def names(
    where: Mapping[int, Sequence[Occurrence]],
    consumed: frozenset[tuple[str, int]],
    lookups: Set[str],
) -> dict[int, str]:
    """Name every space after the first tensor that produces it.

    ``conv1`` is the output of ``conv1.weight``, ``embed`` that of a table, ``embed.rows`` its rows;
    ``conv1.in`` is an input that no tensor produces, ``conv1.dim2`` another dimension;
    ``q_proj:0``, ``q_proj:1`` are several spaces in one dimension.
    """
    bases = {index: _base(places, consumed, lookups) for index, places in where.items()}
    shared: dict[str, list[int]] = {}
    for index, base in bases.items():
        shared.setdefault(base, []).append(index)
    return {
        index: base if len(shared[base]) == 1 else f"{base}:{shared[base].index(index)}"
        for index, base in bases.items()
    }


def _base(
    places: Sequence[Occurrence], consumed: frozenset[tuple[str, int]], lookups: Set[str]
) -> str:
    def is_output(place: Occurrence) -> bool:
        if place.tensor in lookups:
            return place.dim > 0
        # the first dimension that the tensor's operator does not contract
        return all((place.tensor, i) in consumed for i in range(place.dim))

    produced = [place for place in places if (place.tensor, place.dim) not in consumed]
    if not produced:
        return f"{_stem(places[0].tensor)}.in"
    place = next(filter(is_output, produced), produced[0])
    stem = _stem(place.tensor)
    if is_output(place):
        return stem
    return f"{stem}.rows" if place.tensor in lookups else f"{stem}.dim{place.dim}"


def _stem(tensor: str) -> str:
    head, _, last = tensor.rpartition(".")
    return head if head and last in {"weight", "bias"} else tensor
