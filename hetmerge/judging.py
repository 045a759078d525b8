"""How much of its parents' outputs a merged network explains, on inputs it was not made from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor

from hetmerge.batches import Call, comparable, one_by_one, positions, samples
from hetmerge.joining import gives_tokens
from hetmerge.network import Network, outputs_of
from hetmerge.options import Options
from hetmerge.outline import Stage
from hetmerge.outputs import is_written
from hetmerge.projection import Projector
from hetmerge.realising import Realised
from hetmerge.setting import Setting
from hetmerge.softmax_head import flat_rows, log_shares, mixed
from hetmerge.targets import scale_of
from hetmerge.tracing.expr import Leaf
from hetmerge.vocabulary import vocabulary_spaces

JUDGED = 4096  # positions, where an output is a vocabulary
CHUNK = 64  # of them whose probabilities exist in float64 at a time


def outputs_explained(made: Realised, calls: Sequence[Call], options: Options) -> float:
    """Share of what distinguishes the parents' outputs that a merged network gives too (1 is all).

    Of numbers it is the share of their variance: half the mean over the parents, half the least of
    them. Outputs that several parents have are averaged, and count for each of them; where not all
    are the same ones and refit is on, each parent's are standardised, as refit fits them. Of a
    vocabulary it is the share of information: 1 - sum KL(P, Q) / sum KL(P, mean P), with P the
    parents' probabilities as the head mixes them and Q the merged network's. Several outputs count
    the same.

    Args:
        calls: inputs; of a vocabulary windows spread evenly over them are read, 4,096 positions.
    """
    projector, setting = made.projector, made.projector.setting
    tallies = _tallies(projector, options.head)
    if not tallies:
        return 1.0
    if any(isinstance(tally, _Tokens) for tally in tallies.values()):
        calls = _windows(calls)
    stages = setting.alignment.stages
    pairs = list(zip(setting.parents, stages, strict=True))
    if options.refit:
        for place, tally in tallies.items():
            if isinstance(tally, _Numbers) and not tally.shared:
                tally.scales = [_scale(n, s, calls, m, place) for m, (n, s) in enumerate(pairs)]
    theirs = zip(*(outputs_of(network, each, calls) for network, each in pairs), strict=True)
    merged = outputs_of(made.network, setting.stages, calls)
    for call, owns, found in zip(calls, theirs, merged, strict=True):
        for place, tally in tallies.items():
            tally.add(call, {m: own[place] for m, own in enumerate(owns)}, found[place])
    shares = [tally.share() for tally in tallies.values()]
    return sum(shares) / len(shares)


def judging_bytes(setting: Setting, calls: Sequence[Call]) -> int:
    """Most memory of the outputs that are compared: everybody's of one input where they are a
    vocabulary, else of a batch, and what is made of a part of them in float64."""
    skeleton = setting.skeleton
    spaces, most = vocabulary_spaces(skeleton), 0
    for node in skeleton.graph.outputs:
        value = skeleton.nodes.nodes[node].meta["val"]
        leaf = skeleton.graph.values[node][-1] if node in skeleton.graph.values else None
        rows = value.numel() // max(value.shape[-1], 1)
        rows = rows * max(map(positions, calls)) // positions(setting.call)
        if isinstance(leaf, Leaf) and leaf.space in spaces:
            rows //= max(samples(call) for call in calls)
            copies, part = len(setting.parents) + 2, CHUNK
        else:
            copies, part = len(setting.parents) + 1, rows
        working = (3 * len(setting.parents) + 3) * min(part, rows) * 8
        most = max(most, value.shape[-1] * (copies * rows * value.element_size() + working))
    return most


class _Tally(Protocol):
    """What has been seen of one output."""

    def add(self, call: Call, theirs: Mapping[int, Tensor], found: Tensor) -> None:
        """Count one batch: every parent's output, and the merged network's."""

    def share(self) -> float:
        """That is explained so far."""


def _tallies(projector: Projector, head: str) -> dict[int, _Tally]:
    """Place among the outputs -> its tally, for outputs whose last axis names features."""
    graph, found = projector.setting.skeleton.graph, dict[int, _Tally]()
    for place, node in enumerate(graph.outputs):
        leaf = graph.values[node][-1] if node in graph.values else None
        if not isinstance(leaf, Leaf) or leaf.space not in projector.partitions:
            continue
        if gives_tokens(projector, place):
            found[place] = _Tokens(projector, leaf, "kl" if head == "ridge" else head)
        elif is_written(graph.spaces[leaf.space].pins):
            found[place] = _Numbers(projector, leaf)
    return found


class _Numbers:
    """Outputs that are compared number by number."""

    def __init__(self, projector: Projector, leaf: Leaf) -> None:
        partition = projector.partitions[leaf.space]
        labels = partition.labels
        first = next(iter(labels.values()))
        self.shared = all(torch.equal(first, x) for x in labels.values())
        self.scales: list[tuple[float, float]] | None = None
        self.kept = {m: (at >= 0).nonzero().flatten() for m, at in labels.items()}
        self.places = {m: at[self.kept[m]] for m, at in labels.items()}
        mass = torch.zeros(partition.width, dtype=torch.float64)
        for m, at in self.places.items():
            mass.index_add_(0, at, torch.full((len(at),), projector.weights[m]).double())
        mass.clamp_min_(1e-300)
        self.weights = {m: projector.weights[m] / mass[at] for m, at in self.places.items()}
        self.rows = 0
        # Of every merged output: squares of what is missed, and of the wanted about a pivot.
        self.missed, self.sums, self.squares = torch.zeros(3, partition.width, dtype=torch.float64)
        self.pivot: Tensor | None = None

    def add(self, call: Call, theirs: Mapping[int, Tensor], found: Tensor) -> None:
        rows = _rows(found, call, None)
        wanted = torch.zeros_like(rows)
        for m, at in self.places.items():
            own = _rows(theirs[m], call, m)
            if self.scales:
                mean, deviation = self.scales[m]
                own = (own - mean) / deviation
            wanted.index_add_(1, at, own[:, self.kept[m]] * self.weights[m])
        if self.pivot is None:
            self.pivot = wanted.mean(0)
        apart = wanted - self.pivot
        self.rows += len(wanted)
        self.missed += (wanted - rows).square().sum(0)
        self.sums += apart.sum(0)
        self.squares += apart.square().sum(0)

    def share(self) -> float:
        spread = self.squares - self.sums.square() / max(self.rows, 1)
        distinct = [at.unique() for at in self.places.values()]
        error = torch.stack([self.missed[at].sum() for at in distinct])
        variance = torch.stack([spread[at].sum() for at in distinct])
        seen = variance > 0
        if not bool(seen.any()):
            return 1.0
        explained = 1 - error[seen] / variance[seen]
        return float(explained.mean() + explained.min()) / 2


class _Tokens:
    """Probabilities over a vocabulary."""

    def __init__(self, projector: Projector, leaf: Leaf, head: str) -> None:
        self.head, self.weights = head, projector.weights
        parents = range(len(projector.setting.parents))
        self.places = {m: projector.labels(leaf, m) for m in parents}
        self.missed = self.information = 0.0
        self.rows = 0
        self.total = torch.zeros(projector.widths[leaf.space], dtype=torch.float64)

    def add(self, call: Call, theirs: Mapping[int, Tensor], found: Tensor) -> None:
        shares = log_shares(self.head, call, theirs, self.weights)
        own = {m: flat_rows(x, call, m).split(CHUNK) for m, x in theirs.items()}
        for i, rows in enumerate(flat_rows(found, call, None).split(CHUNK)):
            logs = {m: parts[i].double().log_softmax(1) for m, parts in own.items()}
            p = mixed(logs, shares.split(CHUNK, 1)[i], self.places)
            known = torch.special.xlogy(p, p).sum()
            self.information += float(known)
            self.missed += float(known - (p * rows.double().log_softmax(1)).sum())
            self.total += p.sum(0).cpu()
            self.rows += len(p)

    def share(self) -> float:
        mean = self.total / max(self.rows, 1)
        most = self.information - self.rows * float(torch.special.xlogy(mean, mean).sum())
        return 1 - self.missed / most if most > 0 else 1.0


def _scale(
    network: Network, stages: Sequence[Stage], calls: Sequence[Call], member: int, place: int
) -> tuple[float, float]:
    found = zip(calls, outputs_of(network, stages, calls), strict=True)
    return scale_of([comparable(outputs[place], call, member).cpu() for call, outputs in found])


def _rows(value: Tensor, call: Call, member: int | None) -> Tensor:
    """[rows, features] float64, of the positions that count."""
    return comparable(value, call, member).reshape(-1, value.shape[-1]).double().cpu()


def _windows(calls: Sequence[Call]) -> list[Call]:
    """Single inputs of these batches, evenly spread, with so many positions in all."""
    found = [one for call in calls for one in one_by_one(call)]
    count = max(1, JUDGED // max(1, max(map(positions, found))))
    if count >= len(found):
        return found
    return [found[i] for i in torch.linspace(0, len(found) - 1, count).long().tolist()]
