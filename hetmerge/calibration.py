"""Streaming statistics of several parents on the same inputs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from hetmerge.alignment import DEPTHS, align
from hetmerge.errors import InputError
from hetmerge.execution import Walker
from hetmerge.features import View, part, position_mask, take, views_of
from hetmerge.nested import nest_of
from hetmerge.network import Call, Network, as_call, samples
from hetmerge.ops.moments import Moments
from hetmerge.progress import Progress
from hetmerge.setting import Setting, build_setting
from hetmerge.vocabulary import Vocabulary

CHANCE_SAMPLES = 250  # inputs that tell what correlates by chance
FEWEST = 4  # samples of a batch: an unbiased CKA needs them


@dataclass(frozen=True)
class Statistics:
    """What calibration knows about the parents.

    Attributes:
        similarity: stage -> per parent, CKA [units of the deepest parent, units of this parent].
        moments: space of the merged network -> second moments of the parents that have it.
        nested: (outer, inner) space -> moments of an axis that is made of both, such as heads and
            the features inside them.
        chance: space -> moments between the parents' features on inputs that do not belong
            together: what correlates there correlates by chance.
        members: space -> which parents those are.
        samples: inputs seen.
        setting: the traced and aligned parents the statistics belong to.
        calls: the batches, as (args, kwargs).
        vocabulary: which tokens of the parents are the same; None where their order says so.
    """

    similarity: dict[str, list[Tensor]]
    moments: dict[str, Moments]
    nested: dict[tuple[int, int], Moments]
    chance: dict[str, Moments]
    members: dict[str, tuple[int, ...]]
    samples: int
    setting: Setting = field(repr=False)
    calls: tuple[Call, ...] = field(repr=False)
    vocabulary: Vocabulary | None = field(default=None, repr=False)


def calibrate(
    models: Sequence[nn.Module],
    batches: Iterable[Any],
    *,
    depth: str = "segment",
    blocks: Sequence[Any] | None = None,
    progress: bool | None = None,
    within: bool = True,
) -> Statistics:
    """Trace and align the parents, and gather the second moments of every space.

    Two passes over the batches: CKA between unit outputs (which decides what meets what), then
    moments of what each layer reads, pooled over the places where a space is read.

    Args:
        models: two or more parents of one family, of any depths and widths; never modified.
        batches: an iterable of tensors, tuples of model inputs, or dicts of keyword arguments, each
            with at least four samples.
        depth: "segment", "layer", "uniform", "head" or "tail".
        blocks: per parent, per stage, the module paths of its blocks; default: found.
        progress: show bars on standard error; None: only on a terminal.
        within: also gather moments between features of one parent; match="permute" needs none.

    Raises:
        InputError: no batches, a batch a model cannot take, NaN in weights or activations.
        AlignmentError: the parents' stages or tensors do not correspond.
    """
    calls = as_calls(models, batches, depth)
    bar = Progress(progress)
    networks = [Network(m, calls[0], f"models[{i}]") for i, m in enumerate(models)]
    alignment = align(networks, calls, depth=depth, blocks=blocks, progress=bar)
    setting = build_setting(networks, alignment, calls[0])
    moments, nested, chance = _gather(setting, calls, bar, within)
    spaces = setting.skeleton.graph.spaces
    return Statistics(
        similarity=alignment.similarity,
        moments={spaces[k].name: value for k, value in moments.items()},
        nested=nested,
        chance={spaces[k].name: value for k, value in chance.items()},
        members={spaces[k].name: setting.members(k) for k in moments},
        samples=sum(samples(call) for call in calls),
        setting=setting,
        calls=tuple(calls),
    )


def as_calls(models: Sequence[nn.Module], batches: Iterable[Any], depth: str) -> list[Call]:
    """Check the arguments every entry point shares; the batches as calls."""
    check_models(models)
    if depth not in DEPTHS:
        raise InputError(f"depth: got {depth!r}; allowed: {', '.join(DEPTHS)}")
    calls = all_calls(batches)
    if not calls:
        raise InputError("batches: got none; calibration needs at least one batch of inputs")
    for i, call in enumerate(calls):
        if len(models) > 1 and samples(call) < FEWEST:
            raise InputError(
                f"batches: batch {i} has {samples(call)} samples; allowed: {FEWEST} or more in "
                "every batch"
            )
    return calls


def check_models(models: Any) -> None:
    """A list of modules."""
    if not isinstance(models, Sequence):
        kind = "one module" if isinstance(models, nn.Module) else type(models).__name__
        raise InputError(f"models: got {kind}; allowed: a list of one or more modules")
    if not models:
        raise InputError("models: got none; allowed: a list of one or more modules")
    for i, model in enumerate(models):
        if not isinstance(model, nn.Module):
            raise InputError(f"models[{i}]: got {type(model).__name__}; allowed: a torch module")


def all_calls(batches: Iterable[Any]) -> list[Call]:
    """Every batch as (args, kwargs)."""
    if isinstance(batches, Tensor):
        raise InputError(
            "batches: got one tensor; allowed: an iterable of batches, such as tensor.split(250)"
        )
    if not isinstance(batches, Iterable) or isinstance(batches, (str, bytes, Mapping)):
        raise InputError(
            f"batches: got {type(batches).__name__}; "
            "allowed: an iterable of tensors, tuples or dicts"
        )
    return [as_call(batch) for batch in batches]


def _gather(
    setting: Setting, calls: Sequence[Call], progress: Progress, within: bool
) -> tuple[dict[int, Moments], dict[tuple[int, int], Moments], dict[int, Moments]]:
    """Moments per space, per axis that is an outer and an inner space, and by chance."""
    views = _shared_views(setting)
    nests = _nested_views(setting, views)
    moments = {space: Moments(_widths(setting, space), within=within) for space in views}
    nested = {
        nest: Moments([a * b for a, b in zip(*(_widths(setting, k) for k in nest), strict=True)])
        for nest in nests
    }
    chance = {space: Moments(_widths(setting, space), within=False) for space in views}
    order = setting.skeleton.nodes.order
    visits = [(view, space, moments[space]) for space, found in views.items() for view in found]
    visits += [(view, nest[0], nested[nest]) for nest, found in nests.items() for view in found]
    visits.sort(key=lambda item: order.get(item[0].node, -1))
    seen = 0
    for call in progress.track(calls, "moments of spaces"):
        walkers = [network.walk([call]) for network in setting.parents]
        for view, space, target in visits:
            _update(setting, walkers, call, view, space, target)
            if seen < CHANCE_SAMPLES and target is moments[space]:
                _update(setting, walkers, call, view, space, chance[space], shifted=True)
        seen += samples(call)
    return (
        {space: found for space, found in moments.items() if found.count},
        {nest: found for nest, found in nested.items() if found.count},
        {space: found for space, found in chance.items() if found.count},
    )


def _widths(setting: Setting, space: int) -> list[int]:
    return [setting.width(m, space) for m in setting.members(space)]


def _nested_views(
    setting: Setting, views: dict[int, list[View]]
) -> dict[tuple[int, int], list[View]]:
    """Views of whole axes that are an outer and an inner space which the same parents have."""
    graph = setting.skeleton.graph
    found: dict[tuple[int, int], list[View]] = {}
    for space, seen in views.items():
        for view in (v for v in seen if v.path):
            whole = View(view.node, view.dim, view.path[:-1])
            nest = nest_of(part(graph.values[view.node][view.dim], whole.path), graph.spaces)
            if nest and nest[0] == space and setting.members(nest[0]) == setting.members(nest[1]):
                found.setdefault(nest, []).append(whole)
    return found


def _shared_views(setting: Setting) -> dict[int, list[View]]:
    """Views of every free space that at least two parents have, where all of them can be seen."""
    shared = {}
    for space, views in views_of(setting.skeleton).items():
        members = setting.members(space)
        if len(members) > 1 and setting.skeleton.graph.spaces[space].free:
            seen = [v for v in views if all(setting.links[m].node(v.node) for m in members)]
            if seen:
                shared[space] = seen
    return shared


def _positions(features: Tensor) -> int:
    """A space inside an axis of heads or groups is seen once per head: their number may differ."""
    return features.numel() // features.shape[1]


def _update(
    setting: Setting,
    walkers: Sequence[Walker],
    call: Call,
    view: View,
    space: int,
    moments: Moments,
    shifted: bool = False,
) -> None:
    """Add what the parents' features of a space are at one view.

    Args:
        shifted: give every parent but the first the values of other inputs of the batch.
    """
    features: list[Tensor] = []
    masks: list[Tensor] = []
    for turn, m in enumerate(setting.members(space)):
        node = setting.links[m].node(view.node)
        assert node is not None
        expr = setting.parents[m].graph.values[node][view.dim]
        value = walkers[m].value(node)[0]
        features.append(take(value.roll(turn, 0) if shifted else value, expr, view.dim, view.path))
        found = position_mask(call[1], value, features[-1])
        if found is not None:
            masks.append(found.roll(turn * len(found) // len(value)) if shifted else found)
    if len({_positions(x) for x in features}) > 1:
        return
    mask = torch.stack(masks).all(0) if masks else None
    try:
        moments.update(*features, mask=mask)
    except InputError as error:
        name = setting.skeleton.graph.spaces[space].name
        raise InputError(f"activations of space {name!r} (at {view.node}): {error}") from error
