"""Which way of matching suits these parents: every candidate is merged for a trial and judged.

A loss of single spaces does not see how what one layer misses adds up over the layers behind it. So
the candidates are merged, on part of the calibration inputs, and judged on the others by what they
explain of the outputs: half by all parents, half by the one that they serve worst. Where its
outputs are less true than another's they are also smaller, and lose comparisons between the two. No
labels are read.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from hetmerge.batches import Call, comparable, samples
from hetmerge.calibration import Statistics
from hetmerge.dial import match_within
from hetmerge.matching import Matching, shrinks
from hetmerge.options import Options
from hetmerge.outputs import is_written
from hetmerge.progress import Progress
from hetmerge.projection import Projector
from hetmerge.realising import Realised, correct, is_exact, realise
from hetmerge.tracing.expr import Leaf
from hetmerge.vocabulary import vocabulary_spaces

SAMPLES = 500  # inputs that a trial is made from, and as many that it is judged by
ROWS = 15_000  # of a trial's refit: a quarter of a merge's


def choose(
    statistics: Statistics, options: Options, progress: Progress
) -> tuple[Matching, dict[str, float]]:
    """The matching whose merge gives the parents' outputs best, and how well each does.

    Args:
        statistics: of the parents.
        options: of the merge that is wanted; every trial has the same but for `match`.

    Returns:
        The matching, and match -> what its trial explains of the parents' outputs on inputs that it
        was not made from (see :func:`outputs_explained`); empty where nothing had to be tried. Of
        equally good ones the first of "permute", "zip", "select" is taken.
    """
    first = match_within(statistics, replace(options, match="zip"))
    if is_exact(statistics.setting, first.partitions):
        return first, {}
    fit, held = split(statistics.calls)
    matchings = {"zip": first, "select": match_within(statistics, replace(options, match="select"))}
    if options.budget is None and not shrinks(statistics.setting, options.width):
        permuted = match_within(statistics, replace(options, match="permute"))
        matchings = {"permute": permuted, **matchings}
    explained: dict[str, float] = {}
    made: Realised | None = None
    for name, matching in progress.track(list(matchings.items()), "trials of matching"):
        projector = Projector(
            statistics.setting, matching.partitions, options.shares(len(statistics.setting.parents))
        )
        fits = made is not None and made.holds(projector)
        made = made.refilled(projector) if made and fits else realise(statistics.setting, projector)
        correct(made, options, fit, Progress(enabled=False), rows=ROWS)
        # A tie must not be decided by rounding.
        explained[name] = round(outputs_explained(made, held, options.refit), 6)
    best = max(explained, key=lambda name: explained[name])
    shares = ", ".join(f"{name} {share:.4f}" for name, share in explained.items())
    note = (
        f"match='auto' took {best!r} in every space: share of the variance of the parents' outputs "
        "that a trial merge explains on other inputs, half by all parents and half by the one "
        f"served worst: {shares} "
        f"({len(explained)} trials, each from {sum(map(samples, fit))} inputs)"
    )
    return replace(matchings[best], notes=(*matchings[best].notes, note)), explained


def split(calls: Sequence[Call]) -> tuple[list[Call], list[Call]]:
    """Batches to make a trial from, and others to judge it by; a single batch serves for both."""
    if len(calls) == 1:
        return list(calls), list(calls)
    return _first(calls[::2]), _first(calls[1::2])


def _first(calls: Sequence[Call]) -> list[Call]:
    found: list[Call] = []
    for call in calls:
        if sum(samples(c) for c in found) < SAMPLES:
            found.append(call)
    return found


def outputs_explained(made: Realised, calls: Sequence[Call], standardised: bool) -> float:
    """Share of the variance of the parents' outputs that a merged network explains (1 is all).

    Half the mean over the parents, half the least of them. Outputs that several parents have are
    averaged, and count for each of them.

    Args:
        calls: inputs, as many rows of outputs each.
        standardised: where the parents' outputs are not all the same ones, each parent's have mean
            0 and deviation 1, as refit fits them.
    """
    error, variance = torch.zeros(2, len(made.projector.setting.parents), dtype=torch.float64)
    for wanted, found, labels in _outputs(made, calls, standardised):
        missed = (wanted - found).square().sum(0)
        spread = (wanted - wanted.mean(0)).square().sum(0)
        for m, at in labels.items():
            mine = at.unique().to(missed.device)
            error[m] += missed[mine].sum().cpu()
            variance[m] += spread[mine].sum().cpu()
    seen = variance > 0
    if not bool(seen.any()):
        return 1.0
    explained = 1 - error[seen] / variance[seen]
    return float(explained.mean() + explained.min()) / 2


def _outputs(
    made: Realised, calls: Sequence[Call], standardised: bool
) -> Iterator[tuple[Tensor, Tensor, Mapping[int, Tensor]]]:
    """Per output that names features: [rows, merged] as the parents want it, and as it is; and
    where each parent's features stand in it."""
    projector = made.projector
    setting, skeleton = projector.setting, projector.setting.skeleton
    walker, parents = made.network.walk(calls), [p.walk(calls) for p in setting.parents]
    for node in skeleton.graph.program.graph_signature.user_outputs:
        leaf = skeleton.graph.values[node][-1] if node in skeleton.graph.values else None
        if not isinstance(leaf, Leaf) or leaf.space not in projector.partitions:
            continue
        if not is_written(skeleton.graph.spaces[leaf.space].pins):
            continue
        partition = projector.partitions[leaf.space]
        labels = partition.labels
        first = next(iter(labels.values()))
        same = all(torch.equal(first, x) for x in labels.values())
        scaled = standardised and not same and leaf.space not in vocabulary_spaces(skeleton)
        kept = {m: (at >= 0).nonzero().flatten() for m, at in labels.items()}
        mass = torch.zeros(partition.width, dtype=torch.float64)
        for m, at in labels.items():
            shares = torch.full((len(kept[m]),), projector.weights[m], dtype=torch.float64)
            mass.index_add_(0, at[kept[m]], shares)
        found = _rows(calls, walker.value(node), None)
        wanted = torch.zeros_like(found)
        for m, at in labels.items():
            theirs = setting.links[m].node(node)
            assert theirs is not None
            rows = _rows(calls, parents[m].value(theirs), m)
            rows = (rows - rows.mean()) / rows.std().clamp_min(1e-12) if scaled else rows
            at, rows = at[kept[m]], rows[:, kept[m].to(rows.device)]
            share = projector.weights[m] / mass.clamp_min(1e-300)[at]
            wanted.index_add_(1, at.to(rows.device), rows * share.to(rows))
        yield wanted, found, labels


def _rows(calls: Sequence[Call], values: Sequence[Tensor], member: int | None) -> Tensor:
    """[rows, features] float64 of all batches, at the positions that count."""
    found = []
    for call, value in zip(calls, values, strict=True):
        found.append(comparable(value, call, member).reshape(-1, value.shape[-1]).double())
    return torch.cat(found)
