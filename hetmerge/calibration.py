"""Streaming statistics of several parents on the same inputs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor, nn

from hetmerge.alignment import DEPTHS, Alignment, align, find_stages
from hetmerge.batches import Call, as_call, check_members, samples
from hetmerge.devices import call_on, device_of
from hetmerge.errors import InputError
from hetmerge.gathering import Gathered, gather
from hetmerge.halfway import Halfway
from hetmerge.lazy import Checkpoint
from hetmerge.loudness import Squares
from hetmerge.network import Network
from hetmerge.ops.moments import Moments
from hetmerge.progress import Progress
from hetmerge.relatives import relatives
from hetmerge.scope import Scope
from hetmerge.setting import Setting, build_setting
from hetmerge.vocabulary import Vocabulary

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
        axes: outer space -> moments of all heads or groups with what is inside them, for
            match="pca".
        squares: node in front of a norm -> how loud the parents' features are there, where their
            number differs, and of all streams for match="pca".
        members: space -> which parents those are.
        samples: inputs seen.
        setting: the traced and aligned parents the statistics belong to.
        calls: the batches, as (args, kwargs).
        vocabulary: which tokens of the parents are the same; None where their order says so.
        notes: remarks on parents that stand here in another form than they were given.
    """

    similarity: dict[str, list[Tensor]]
    moments: dict[str, Moments]
    nested: dict[tuple[int, int], Moments]
    chance: dict[str, Moments]
    axes: dict[int, Moments]
    squares: dict[str, Squares]
    members: dict[str, tuple[int, ...]]
    samples: int
    setting: Setting = field(repr=False)
    calls: tuple[Call, ...] = field(repr=False)
    vocabulary: Vocabulary | None = field(default=None, repr=False)
    notes: tuple[str, ...] = ()

    def take(self, part: Gathered) -> None:
        """Take over the moments of some spaces; `part` is empty afterwards."""
        spaces = self.setting.skeleton.graph.spaces
        self.moments.update({spaces[k].name: value for k, value in part.moments.items()})
        self.chance.update({spaces[k].name: value for k, value in part.chance.items()})
        self.members.update({spaces[k].name: self.setting.members(k) for k in part.moments})
        self.nested.update(part.nested)
        self.axes.update(part.axes)
        self.squares.update(part.squares)
        for found in (part.moments, part.nested, part.chance, part.axes):
            found.clear()

    def of(self, calls: Sequence[Call]) -> Statistics:
        """Of the same parents on other batches, nothing seen yet."""
        total = sum(samples(call) for call in calls)
        new = Statistics(self.similarity, {}, {}, {}, {}, {}, {}, total, self.setting, tuple(calls))
        return replace(new, vocabulary=self.vocabulary, notes=self.notes)

    def forget(self) -> None:
        """Drop all moments."""
        for found in (self.moments, self.nested, self.chance, self.axes):
            found.clear()


def calibrate(
    models: Sequence[nn.Module | Checkpoint],
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
    found = align_parents(models, calls, depth, "zero", blocks, bar)
    for part in gather(found.setting, calls, bar, Scope(within)):
        found.take(part)
    return found


def align_parents(
    models: Sequence[nn.Module | Checkpoint],
    calls: Sequence[Call],
    depth: str,
    missing: str,
    blocks: Sequence[Any] | None,
    progress: Progress,
    halfway: Halfway | None = None,
) -> Statistics:
    """The first of the two passes: statistics without moments."""
    parents = relatives(models)
    named = enumerate(parents.models)
    networks = [Network(m, calls[0], f"models[{i}]", member=i) for i, m in named]
    if halfway and (before := halfway.take("alignment")):
        alignment = Alignment(find_stages(networks, blocks), **before)
    else:
        alignment = align(
            networks, calls, depth=depth, missing=missing, blocks=blocks, progress=progress
        )
    if halfway:
        halfway.keep("alignment", alignment.state)
        halfway.passed()
    setting = build_setting(networks, alignment, calls[0])
    total = sum(samples(call) for call in calls)
    found = Statistics(alignment.similarity, {}, {}, {}, {}, {}, {}, total, setting, tuple(calls))
    return replace(found, notes=parents.notes)


def as_calls(
    models: Sequence[nn.Module | Checkpoint], batches: Iterable[Any], depth: str
) -> list[Call]:
    """Check the arguments every entry point shares; the batches as calls."""
    check_models(models)
    if depth not in DEPTHS:
        raise InputError(f"depth: got {depth!r}; allowed: {', '.join(DEPTHS)}")
    calls = calls_for(models, batches)
    if not calls:
        raise InputError("batches: got none; calibration needs at least one batch of inputs")
    for i, call in enumerate(calls):
        check_members(call, len(models))
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
        if not isinstance(model, (nn.Module, Checkpoint)):
            raise InputError(
                f"models[{i}]: got {type(model).__name__}; allowed: a torch module, or what "
                "open_checkpoint returns"
            )
    if len({isinstance(model, Checkpoint) for model in models}) > 1:
        raise InputError("models: some are modules and some are checkpoints; allowed: one kind")


def calls_for(models: Sequence[nn.Module | Checkpoint], batches: Iterable[Any]) -> list[Call]:
    """Every batch as (args, kwargs), on the device of the models."""
    check_models(models)
    device = device_of(models)
    return [call_on(call, device) for call in all_calls(batches)]


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
