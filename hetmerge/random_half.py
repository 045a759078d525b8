"""The control of matching: a merge that keeps a random half of every parent's features.

A way of choosing features is worth only what it adds to this.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from hetmerge.applying import MergeResult, prepare
from hetmerge.nested import nested
from hetmerge.norm_scales import norm_scales
from hetmerge.ops.selection import select
from hetmerge.planning import plan_statistics
from hetmerge.progress import Progress
from hetmerge.selecting import keep
from hetmerge.uniform import even_out


def random_half(
    models: Sequence[nn.Module],
    batches: Iterable[Any],
    *,
    seed: int = 0,
    progress: bool | None = None,
    **options: Any,
) -> MergeResult:
    """Merge by keeping features drawn at random, the same share of every parent's.

    Everything else is as in a merge with match="select": what is not kept is read off what is, by
    least squares, and refit follows. Heads and groups are matched as zip does.

    Args:
        models, batches, progress, options: as for :func:`hetmerge.merge`, without `match`.
        seed: of the draw.
    """
    plan, statistics, partitions = plan_statistics(
        models, batches, progress=progress, match="zip", **options
    )
    generator = torch.Generator().manual_seed(seed)
    spaces = statistics.setting.skeleton.graph.spaces
    drawn = dict(partitions)
    for k, partition in partitions.items():
        moments = statistics.moments.get(spaces[k].name)
        if moments is not None and not partition.union and not nested(spaces, k):
            sizes = {m: len(labels) for m, labels in partition.labels.items()}
            covariance = moments.covariance()
            chosen = _draw(sizes, partition.width, generator)
            known = covariance[chosen][:, chosen]
            order = select(known, torch.eye(len(known), dtype=known.dtype), len(known))
            drawn[k] = keep(covariance, sizes, chosen[order.features], order.live)
    setting = statistics.setting
    drawn = even_out(setting, drawn, plan.weights)
    scales = norm_scales(setting, statistics.squares, drawn, plan.weights)
    plan = plan.with_partitions({spaces[k].name: p for k, p in drawn.items()}, scales)
    return prepare(plan, setting, drawn, statistics.calls).run(Progress(progress))


def _draw(sizes: Mapping[int, int], width: int, generator: torch.Generator) -> Tensor:
    """int64 [width]: features of all parents in one row, of each parent its share at random."""
    total, start, taken = sum(sizes.values()), 0, 0
    chosen = []
    for size in sizes.values():
        wanted = round(width * (start + size) / total) - taken
        chosen.append(start + torch.randperm(size, generator=generator)[:wanted])
        start, taken = start + size, taken + wanted
    return torch.cat(chosen)
