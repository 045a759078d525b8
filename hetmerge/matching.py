"""Width: a partition for every space, from the correlations of what its features do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hetmerge.calibration import Statistics
from hetmerge.errors import InputError
from hetmerge.ops.assignment import linear_sum_assignment
from hetmerge.ops.moments import Moments
from hetmerge.ops.zipping import zip_match_info
from hetmerge.outputs import output_partition
from hetmerge.partition import Partition, identity, union
from hetmerge.tracing.spaces import Space
from hetmerge.uniform import even_out

MATCHES = ("zip", "permute", "identity")
Width = str | float | Mapping[str, int | float | str]
_Choice = tuple[str, float, float, str]  # match, alpha, beta, backend


@dataclass(frozen=True)
class Matching:
    """Partitions of every space of the skeleton, and remarks for the report."""

    partitions: dict[int, Partition]
    notes: tuple[str, ...]


def match_spaces(
    statistics: Statistics,
    *,
    match: str = "zip",
    alpha: float = 0.5,
    beta: float = 1.0,
    width: Width = "max",
    outputs: str = "average",
    labels: Sequence[Sequence[str]] | None = None,
    weights: Sequence[float] | None = None,
    backend: str = "auto",
) -> Matching:
    """Compute one partition per space.

    A parent of weight 0 has no say: the others are matched without it, and its features join the
    clusters they resemble most, so that a merge with weight 1 for one parent returns that parent.

    Raises:
        InputError: an option is out of range.
        PlanError: a space that must keep its order has different sizes in the parents.
    """
    if match not in MATCHES:
        raise InputError(f"match: got {match!r}; allowed: {', '.join(MATCHES)}")
    setting = statistics.setting
    _check_names(width, setting.skeleton.graph.spaces)
    partitions: dict[int, Partition] = {}
    notes: list[str] = []
    for space in _outer_first(setting.skeleton.graph.spaces):
        members = setting.members(space.index)
        sizes = {m: setting.width(m, space.index) for m in members}
        if not members:
            continue
        if not space.free or any(not setting.parents[m].graph.spaces[
            setting.links[m].spaces[space.index]
        ].free for m in members):  # fmt: skip
            pins = [p for m in members for p in _pins(statistics, m, space.index)]
            partitions[space.index] = output_partition(space.name, pins, sizes, outputs, labels)
            continue
        target = _target(width, space.name, list(sizes.values()))
        moments = statistics.moments.get(space.name)
        silent = [m for m in members if weights is not None and weights[m] == 0]
        outer = [partitions[k] for k in space.structure if k in partitions]
        if len(members) > 1 and any(p.union and len(p.labels) > 1 for p in outer):
            # Kept apart by the outer axis already (heads, groups): the inner order can be shared.
            partitions[space.index] = _positional(space.name, sizes, max(sizes.values()), [])
        elif len(members) == 1 or target == sum(sizes.values()):
            partitions[space.index] = union(sizes)
        elif moments is None:
            partitions[space.index] = _positional(space.name, sizes, target, notes)
        else:
            similarity = similarity_of(moments)
            options = (match, alpha, beta, backend)
            solve = _silenced if 0 < len(silent) < len(members) else _match
            partitions[space.index] = solve(
                options, similarity, sizes, target, space.name, notes, silent
            )
    return Matching(even_out(setting, partitions), tuple(notes))


def _outer_first(spaces: Sequence[Space]) -> list[Space]:
    """Spaces in an order in which those that others are nested in come first."""
    depth: dict[int, int] = {}

    def depth_of(space: Space) -> int:
        if space.index not in depth:
            depth[space.index] = 1 + max((depth_of(spaces[k]) for k in space.structure), default=0)
        return depth[space.index]

    return sorted(spaces, key=lambda space: (depth_of(space), space.index))


def similarity_of(moments: Moments) -> Tensor:
    """Pearson correlation [O, O]; features of different parents that are both constant count as
    alike (1), because merging them loses nothing that calibration can see."""
    similarity = moments.correlation()
    dead = similarity.diagonal() == 0
    if bool((similarity.diagonal()[~dead] < 0.999).any()):
        similarity = _scale_free(moments, dead)
    parent = torch.repeat_interleave(torch.arange(len(moments.sizes)), torch.tensor(moments.sizes))
    both = dead[:, None] & dead[None] & (parent[:, None] != parent[None])
    return similarity.masked_fill(both, 1.0)


def _scale_free(moments: Moments, dead: Tensor) -> Tensor:
    """Correlations without the floor of 1e-7 under the deviations: quiet features count in full."""
    covariance = moments.covariance()
    inverse = covariance.diagonal().clamp_min(0).rsqrt().masked_fill(dead, 0)
    return covariance.mul_(inverse[:, None]).mul_(inverse).clamp_(-1.0, 1.0)


def _silenced(
    options: _Choice,
    similarity: Tensor,
    sizes: dict[int, int],
    target: int,
    name: str,
    notes: list[str],
    silent: list[int],
) -> Partition:
    """Match the other parents; features of silent ones join the clusters they resemble most."""
    parent = torch.repeat_interleave(torch.tensor(list(sizes)), torch.tensor(list(sizes.values())))
    heard = ~torch.isin(parent, torch.tensor(silent))
    active = {m: count for m, count in sizes.items() if m not in silent}
    width = min(target, sum(active.values()))
    inner = similarity[heard][:, heard]
    if width == sum(active.values()):
        partition = union(active)
    else:
        partition = _match(options, inner, active, width, name, notes, silent)
    flat = torch.cat([partition.labels[m] for m in active])
    labels = dict(partition.labels)
    for m in silent:
        labels[m] = flat[similarity[parent == m][:, heard].argmax(1)]
    return Partition(width, dict(sorted(labels.items())))


def _pins(statistics: Statistics, parent: int, space: int) -> tuple[str, ...]:
    link = statistics.setting.links[parent]
    return link.parent.graph.spaces[link.spaces[space]].pins


def _match(
    options: _Choice,
    similarity: Tensor,
    sizes: dict[int, int],
    target: int,
    name: str,
    notes: list[str],
    _: list[int],
) -> Partition:
    match, alpha, beta, backend = options
    if match == "identity":
        return _positional(name, sizes, target, [])
    counts = list(sizes.values())
    if match == "permute":
        if target < max(counts):
            raise InputError(
                f"width: {target} for space {name!r} is below its widest parent ({max(counts)}); "
                "match='permute' cannot shrink a parent: use match='zip' or a larger width"
            )
        labels = permute_labels(similarity, counts, target)
    else:
        found = zip_match_info(
            similarity, counts, width=target, alpha=alpha, beta=beta, backend=backend
        )
        labels = torch.as_tensor(found.labels).long()
        if found.relaxed:
            notes.append(f"space {name!r}: within-model budgets ran out and were relaxed")
    return Partition(target, dict(zip(sizes, labels.split(counts), strict=True)))


def permute_labels(similarity: Tensor, sizes: Sequence[int], width: int) -> Tensor:
    """Labels of one-to-one matching, parent after parent.

    Each parent is matched to the clusters of those before it by linear sum assignment of the mean
    correlation; where `width` leaves room, only the best pairs are merged.

    Args:
        similarity: [sum(sizes), sum(sizes)] correlations.
        sizes: features per parent.
        width: number of clusters, at least max(sizes).

    Returns:
        int64 [sum(sizes)] in [0, width).
    """
    starts = [0, *torch.tensor(list(sizes)).cumsum(0).tolist()]
    order = sorted(range(len(sizes)), key=lambda m: (-sizes[m], m))
    labels = torch.full((starts[-1],), -1, dtype=torch.int64)
    clusters = 0
    for m in order:
        rows = slice(starts[m], starts[m + 1])
        count = sizes[m]
        pairs = max(0, clusters + count - width)
        if pairs:
            score = _cluster_scores(similarity[rows], labels, clusters)
            mine, theirs = (i.long() for i in linear_sum_assignment(score))
            best = score[mine, theirs].argsort(descending=True, stable=True)[:pairs]
            labels[starts[m] + mine[best]] = theirs[best]
        alone = (labels[rows] < 0).nonzero().flatten() + starts[m]
        labels[alone] = torch.arange(clusters, clusters + len(alone))
        clusters += len(alone)
    return labels


def _cluster_scores(rows: Tensor, labels: Tensor, clusters: int) -> Tensor:
    known = labels >= 0
    sums = torch.zeros(rows.shape[0], clusters, dtype=rows.dtype)
    sums.index_add_(1, labels[known], rows[:, known])
    return sums / torch.bincount(labels[known], minlength=clusters)


def _positional(name: str, sizes: dict[int, int], target: int, notes: list[str]) -> Partition:
    """Feature i meets feature i; where the target leaves room, the last ones stay alone."""
    if target < max(sizes.values()):
        raise InputError(
            f"width: {target} for space {name!r} is below its widest parent "
            f"({max(sizes.values())}); only match='zip' can shrink a parent"
        )
    notes.append(f"space {name!r} cannot be compared in activations: matched by position")
    labels: dict[int, Tensor] = {}
    used = 0
    for m, count in sizes.items():
        shared = max(0, used + count - target) if used else 0
        fresh = torch.arange(used, used + count - shared)
        labels[m] = torch.cat([torch.arange(shared), fresh])
        used += len(fresh)
    return Partition(target, labels) if used == target else identity(max(sizes.values()), sizes)


def _target(width: Width, name: str, sizes: list[int]) -> int:
    choice = width.get(name, width.get("default", "max")) if isinstance(width, Mapping) else width
    if choice == "max":
        return max(sizes)
    if choice == "union":
        return sum(sizes)
    if isinstance(choice, bool) or not isinstance(choice, (int, float)) or not choice > 0:
        raise InputError(
            f"width: got {choice!r} for space {name!r}; allowed: 'max', 'union', a positive factor "
            "of the widest parent, or a dict of space name -> such a value or a number of features"
        )
    absolute = isinstance(width, Mapping) and isinstance(choice, int)
    target = choice if absolute else round(choice * max(sizes))
    if len(sizes) == 1:
        return sum(sizes)
    return int(min(max(target, 1), sum(sizes)))


def _check_names(width: Width, spaces: Sequence[Space]) -> None:
    if isinstance(width, Mapping):
        known = {space.name for space in spaces} | {"default"}
        wrong = sorted(set(width) - known)
        if wrong:
            raise InputError(f"width: no space {wrong[0]!r}; spaces are {', '.join(sorted(known))}")
