"""How the outputs of the parents become those of the merged network."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from hetmerge.errors import PlanError
from hetmerge.projection import Projector
from hetmerge.targets import scale_of
from hetmerge.tracing.expr import Leaf
from hetmerge.vocabulary import vocabulary_spaces


def join(
    projector: Projector, place: int, values: Callable[[int], Sequence[Tensor]] | None
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The averages of one output, as arguments and tensors of :class:`hetmerge.partial.Join`.

    Args:
        place: which of the model's outputs.
        values: parent -> its values of this output, one per batch; outputs that some parent lacks
            are standardised by them as refit does it. None: they are taken as they are.

    Raises:
        PlanError: it is put together along more than one axis.
    """
    setting, parents = projector.setting, range(len(projector.setting.parents))
    node = setting.skeleton.graph.outputs[place]
    exprs = setting.skeleton.graph.values[node]
    found = [[projector.labels(expr, m) for m in parents] for expr in exprs]
    apart = [d for d, labels in enumerate(found) if not _same(labels)]
    if len(apart) > 1:
        raise PlanError(f"output {node!r} is put together along {len(apart)} axes; allowed: one")
    dim = apart[0] if apart else len(exprs) - 1
    width = found[dim][0][1]
    index = torch.zeros(len(parents), width, dtype=torch.int64)
    factor = torch.zeros(len(parents), width, dtype=torch.float64)
    for m, (labels, _) in enumerate(found[dim]):
        kept = (labels >= 0).nonzero().flatten()  # a vocabulary may lack some of a parent's tokens
        index[m, labels[kept]] = kept
        factor[m, labels[kept]] = projector.weights[m]
    mass = factor.sum(0)
    like = next(iter(setting.parents[0].state.values()))
    spec = {"dim": dim, "width": width, "heads": len(parents)}
    share = factor / mass.where(mass > 0, 1.0)
    tensors = {"index": index.to(like.device), "factor": share.to(like)}
    everything = all(len(labels.unique()) == width for labels, _ in found[dim])
    if values is not None and not everything and not gives_tokens(projector, place):
        scales = [scale_of(values(m)) for m in parents]
        for name, numbers in zip(("mean", "deviation"), zip(*scales, strict=True), strict=True):
            tensors[name] = torch.tensor(numbers, dtype=torch.float64).to(like)
    return {**spec, "dtype": str(like.dtype).removeprefix("torch.")}, tensors


def gives_tokens(projector: Projector, place: int) -> bool:
    """The last axis of this output is the vocabulary, whose softmax is a distribution."""
    graph = projector.setting.skeleton.graph
    leaf = graph.values[graph.outputs[place]][-1]
    return isinstance(leaf, Leaf) and leaf.space in vocabulary_spaces(projector.setting.skeleton)


def _same(labels: Sequence[tuple[Tensor, int]]) -> bool:
    """Every parent's elements are the merged ones, in order."""
    return all(torch.equal(found, torch.arange(width)) for found, width in labels)
