"""Depth alignment by exhaustive search: the specification of ``ops.segments``."""

from __future__ import annotations

from itertools import combinations
from typing import Any

from numpy.typing import NDArray


def align_depth(
    similarity: NDArray[Any],  # [deep, shallow]
    objective: str,
    anchor: str,
) -> list[int]:  # [shallow] start of each shallow layer's segment in the deep model
    """The best of all segmentations; of equally good ones, the last start is the earliest possible,
    then the one before it, and so on (arXiv 2501.00061 eq 7 and 8)."""
    deep, shallow = similarity.shape

    def score(starts: tuple[int, ...]) -> float:
        ends = (*starts[1:], deep)
        total = 0.0
        for k, (start, end) in enumerate(zip(starts, ends, strict=True)):
            if objective == "layer":
                counted = range(start, end)
            else:
                counted = range(end - 1, end) if anchor == "end" else range(start, start + 1)
            total += sum(float(similarity[layer, k]) for layer in counted)
        return total

    candidates: list[tuple[int, ...]] = [
        (0, *rest) for rest in combinations(range(1, deep), shallow - 1)
    ]
    ranked = [(-score(starts), starts[::-1], starts) for starts in candidates]
    return list(min(ranked)[2])
