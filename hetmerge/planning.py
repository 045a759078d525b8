"""Plan a merge: pure data that says which features and layers meet, without any weights."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from hetmerge.agreement import Agreement
from hetmerge.alignment import Alignment, find_stages
from hetmerge.architecture import check_reached, target_of, widths_of
from hetmerge.batches import Call, as_given
from hetmerge.calibration import Statistics, align_parents, as_calls, calls_for, check_models
from hetmerge.choosing import choose
from hetmerge.cutting import find_cut
from hetmerge.devices import call_on, device_of
from hetmerge.dial import match_streamed, match_within
from hetmerge.errors import InputError, PlanError
from hetmerge.family_sizes import fit_family
from hetmerge.fingerprint import call_from, call_spec, fingerprint
from hetmerge.gathering import gather
from hetmerge.halfway import Halfway
from hetmerge.huggingface import configuration_notes
from hetmerge.lazy import Checkpoint
from hetmerge.maps_cost import check_room
from hetmerge.network import Network
from hetmerge.norm_scales import norm_scales, uncarried
from hetmerge.options import Options
from hetmerge.partition import Partition
from hetmerge.progress import Progress
from hetmerge.relatives import relatives
from hetmerge.repeating import stands_at
from hetmerge.scope import Scope
from hetmerge.score_scales import unscaled
from hetmerge.setting import Setting, build_setting, passage_notes, pattern_notes
from hetmerge.vocabulary import Vocabulary

if TYPE_CHECKING:
    from hetmerge.cost import Cost


@dataclass(frozen=True)
class PlannedSpace:
    """One space of the merged network.

    Attributes:
        name: of the space in the skeleton.
        width: merged features.
        labels: per parent int64 [size] in [0, width), -1 for features a selection did not keep, or
            None where the parent lacks the space; [units, size] where they differ inside the
            parent's units of another space.
        free: False where the order had to be kept (inputs, outputs, constants).
        readoff: of a selection or an orthogonal map, parent -> [lost, width], how its features of
            label -1 are read from the merged ones.
        writes: of an orthogonal map, parent -> [size, width], what its features add to them.
        agreement: correlations of the features that share a cluster; None where they were not
            compared.
        outer: name of that other space (heads or groups); None where labels do not differ.
    """

    name: str
    width: int
    labels: list[Tensor | None]
    free: bool
    readoff: Mapping[int, Tensor] = field(default_factory=dict)
    writes: dict[int, Tensor] = field(default_factory=dict)
    agreement: Agreement | None = None
    outer: str | None = None

    def partition(self, spaces: Mapping[str, int]) -> Partition:
        """Its map, given the index of every space of the skeleton by name."""
        labels = {m: found for m, found in enumerate(self.labels) if found is not None}
        outer = None if self.outer is None else spaces[self.outer]
        return Partition(self.width, labels, self.readoff, self.writes, outer)


@dataclass(frozen=True)
class AlignmentPlan:
    """What a merge will do; save it, read it, apply it again.

    Attributes:
        options: how the merge was asked for.
        parents: per parent, a fingerprint of its class, tensor names and shapes.
        inputs: shapes and dtypes of the example inputs the parents are traced with.
        base: index of the parent whose modules carry the merged network.
        stages: stage names.
        slots: per parent, per stage, per merged position: the parent's unit, or None; a repeated
            unit stands at several positions in a row.
        similarities: stage -> per parent, CKA [deepest parent's units, this parent's units].
        spaces: one partition per space.
        notes: remarks for the user.
        blocks: stages named by hand, or None.
        samples: calibration inputs.
        norm_scales: tensor behind a norm over more features than a parent's own -> what each
            parent's is multiplied by.
        trials: of match="auto", way of matching -> share of the variance of the parents' outputs
            that its trial explained; the largest, the first of equal ones, was taken.
    """

    options: Options
    parents: list[dict[str, Any]]
    inputs: dict[str, Any]
    base: int
    stages: list[str]
    slots: list[list[list[int | None]]]
    similarities: dict[str, list[Tensor]]
    spaces: list[PlannedSpace]
    notes: tuple[str, ...] = ()
    blocks: list[Any] | None = None
    samples: int = 0
    norm_scales: dict[str, list[float]] = field(default_factory=dict)
    trials: dict[str, float] = field(default_factory=dict)

    @property
    def weights(self) -> list[float]:
        """Parent weights, summing to 1."""
        return self.options.shares(len(self.parents))

    @property
    def segments(self) -> dict[str, list[int]]:
        """Stage -> (first) merged position of every unit of the parent with the fewest there."""
        found = {}
        for s, name in enumerate(self.stages):
            rows = [stands_at(slots[s]) for slots in self.slots]
            found[name] = min(rows, key=len)
        return found

    @property
    def similarity(self) -> dict[str, list[list[float]]]:
        """Stage -> CKA [deep, shallow] behind `segments`."""
        found = {}
        for s, name in enumerate(self.stages):
            counts = [len(stands_at(slots[s])) for slots in self.slots]
            order = sorted(range(len(counts)), key=lambda m: (counts[m], m != self.base, m))
            tables = self.similarities.get(name)
            if tables:
                pick = order[0] if len(set(counts)) > 1 else _other(tables)
                found[name] = tables[pick].tolist()
        return found

    def partitions(self, setting: Setting) -> dict[int, Partition]:
        """The maps by the index of their space.

        Raises:
            PlanError: a space is not there.
        """
        by_name = {space.name: space.index for space in setting.skeleton.graph.spaces}
        if missing := [s.name for s in self.spaces if s.name not in by_name]:
            raise PlanError(f"the plan names space {missing[0]!r}, which these models do not have")
        return {by_name[s.name]: s.partition(by_name) for s in self.spaces}

    def with_options(self, **changes: Any) -> AlignmentPlan:
        """The same plan with other options of `apply`."""
        return replace(self, options=Options.make({**self.options.to_dict(), **changes}))

    def with_partitions(
        self, partitions: Mapping[str, Partition], norm_scales: dict[str, list[float]]
    ) -> AlignmentPlan:
        """The same plan with other maps of these spaces, whose agreement is not known."""
        spaces = [
            replace(
                space,
                width=found.width,
                labels=[found.labels.get(m) for m in range(len(self.parents))],
                readoff=found.readoff,
                writes=found.writes,
                agreement=None,
                outer=None if found.outer is None else space.outer,
            )
            if (found := partitions.get(space.name))
            else space
            for space in self.spaces
        ]
        return replace(self, spaces=spaces, norm_scales=norm_scales)

    def save(self, directory: str | Path) -> None:
        """Write plan.json and plan.safetensors into a directory, which is made if needed."""
        from hetmerge.plan_files import write_plan

        write_plan(self, Path(directory))

    @staticmethod
    def load(directory: str | Path) -> AlignmentPlan:
        """Read a plan into memory; PlanError if it is missing, damaged or was changed by hand."""
        from hetmerge.plan_files import in_memory, read_plan

        return in_memory(read_plan(Path(directory)))

    def cost(self, models: Sequence[nn.Module], batches: Iterable[Any]) -> Cost:
        """What :func:`hetmerge.apply` will take on these batches: rows, memory, operations.

        Nothing is run but the tracing and projecting that `apply` begins with.

        Raises:
            PlanError: the plan was made for other models.
            InputError: the batches do not do for refit.
        """
        from hetmerge.applying import prepare

        return prepare(self, *setting_of(self, models), batches_for(models, batches)).cost

    def summary(self) -> str:
        """What will happen, for a person."""
        from hetmerge.report import summarise

        return summarise(self)


def _other(tables: list[Tensor]) -> int:
    """The first parent that is compared with another one, not with itself."""
    eyes = [t.shape[0] == t.shape[1] and torch.equal(t, torch.eye(len(t)).to(t)) for t in tables]
    return eyes.index(False) if False in eyes else 0


def plan(
    models: Sequence[nn.Module | Checkpoint],
    batches: Iterable[Any],
    *,
    blocks: Sequence[Any] | None = None,
    vocabulary: Vocabulary | None = None,
    progress: bool | None = None,
    **options: Any,
) -> AlignmentPlan:
    """Decide what meets what; see :class:`hetmerge.options.Options` for the options.

    Args:
        models: the parents; never modified.
        batches: calibration inputs without labels (see :func:`hetmerge.calibrate`).
        blocks: stages named by hand: per parent, per stage, module paths.
        vocabulary: of language models with different tokenizers, which rows meet (see
            :func:`hetmerge.vocabulary.base_vocabulary`).

    Trials of checkpoints (match="auto") are written to the temporary folder, one at a time.
    """
    given: dict[str, Any] = {"blocks": blocks, "vocabulary": vocabulary, "progress": progress}
    chosen = Options.make(options)
    if chosen.match == "auto":
        calls = as_calls(models, batches, chosen.depth)
        batches = as_given(calls)
        if isinstance(models[0], Checkpoint):
            from hetmerge.trials import trials_beside

            return trials_beside(models, calls, chosen, given)
    return plan_statistics(models, batches, **given, **options)[0]


def plan_statistics(
    models: Sequence[nn.Module | Checkpoint],
    batches: Iterable[Any],
    *,
    blocks: Sequence[Any] | None = None,
    vocabulary: Vocabulary | None = None,
    progress: bool | None = None,
    halfway: Halfway | None = None,
    aligned: Statistics | None = None,
    **options: Any,
) -> tuple[AlignmentPlan, Statistics, dict[int, Partition]]:
    """A plan with the statistics and partitions it was made from.

    Args:
        halfway: of parents on disk, where what is finished is kept for a run that is stopped.
        aligned: statistics without moments, of the same parents, batches and options of depth.
    """
    chosen = Options.make(options)
    calls = as_calls(models, batches, chosen.depth)
    if isinstance(models[0], Checkpoint):
        chosen = _on_disk(chosen)
    chosen.check_counts(len(models))
    bar = Progress(progress)
    statistics = (
        aligned.of(calls)
        if aligned
        else align_parents(models, calls, chosen.depth, chosen.missing, blocks, bar, halfway)
    )
    statistics = replace(statistics, vocabulary=vocabulary)
    setting, target = statistics.setting, None
    if chosen.architecture:
        target = target_of(setting, chosen.architecture)
        chosen = replace(chosen, architecture=None, width=widths_of(setting, target))

    def finish(found: dict[int, Partition]) -> tuple[dict[int, Partition], list[str]]:
        fitting, more = fit_family(setting, found)
        if target:
            check_reached(setting, target, {k: p.width for k, p in fitting.items()})
        return fitting, more

    choice = choose(statistics, chosen, finish, bar) if chosen.match == "auto" else None
    if choice:
        chosen = replace(chosen, match=choice.match)
    if halfway:
        check_room(halfway.path.parent, setting, chosen.match)
    gathered = partial(gather, setting, calls, bar, Scope.of(setting, chosen), halfway)
    if setting.skeleton.in_memory:
        for part in gathered():
            statistics.take(part)
        matching = match_within(statistics, chosen)
    else:
        matching = match_streamed(statistics, gathered, chosen, halfway)
    find_cut(setting, chosen.stop_at)
    partitions, more = finish(matching.partitions)
    spaces, shares = setting.skeleton.graph.spaces, chosen.shares(len(models))
    found = AlignmentPlan(
        options=chosen,
        parents=[fingerprint(model) for model in models],
        inputs=call_spec(calls[0]),
        base=setting.alignment.base,
        stages=setting.alignment.names,
        slots=setting.alignment.slots,
        similarities=statistics.similarity,
        spaces=[
            PlannedSpace(
                spaces[k].name,
                p.width,
                [p.labels.get(m) for m in range(len(models))],
                spaces[k].free,
                p.readoff,
                p.writes,
                matching.agreements.get(k),
                None if p.outer is None else spaces[p.outer].name,
            )
            for k, p in partitions.items()
        ],
        notes=(
            *statistics.notes,
            *configuration_notes(setting),
            *passage_notes(setting, chosen.missing),
            *pattern_notes(setting),
            *matching.notes,
            *more,
            *unscaled(setting, {k: p.width for k, p in partitions.items()}),
            *uncarried(setting),
            *([vocabulary.note] if vocabulary else []),
        ),
        blocks=list(blocks) if blocks is not None else None,
        samples=statistics.samples,
        norm_scales=norm_scales(setting, statistics.squares, partitions, shares),
    )
    return choice.told(found) if choice else found, statistics, partitions


def _on_disk(options: Options) -> Options:
    """What is left of the options where moments are forgotten space by space.

    Raises:
        InputError: one of them needs whole modules.
    """
    if options.stop_at is not None:
        raise InputError("stop_at: a partial merge needs its parents in memory; give modules")
    return replace(options, importance="weights")


def batches_for(
    models: Sequence[nn.Module | Checkpoint], batches: Iterable[Any] | None
) -> list[Call]:
    """Calls of optional batches."""
    return calls_for(models, batches) if batches is not None else []


def setting_of(
    plan: AlignmentPlan, models: Sequence[nn.Module | Checkpoint]
) -> tuple[Setting, dict[int, Partition]]:
    """Trace the parents again and lay the plan over them.

    Raises:
        PlanError: the plan was made for other models.
    """
    check_models(models)
    if len(models) != len(plan.parents):
        raise PlanError(f"models: got {len(models)}; the plan was made for {len(plan.parents)}")
    for m, (model, wanted) in enumerate(zip(models, plan.parents, strict=True)):
        if (found := fingerprint(model)) != wanted:
            raise PlanError(
                f"models[{m}]: got {found['class']} with {found['parameters']:,} parameters; "
                f"the plan was made for {wanted['class']} with {wanted['parameters']:,} "
                "(tensor names and shapes must be equal)"
            )
    call = call_on(call_from(plan.inputs), device_of(models))
    parents = enumerate(relatives(models).models)
    networks = [Network(model, call, f"models[{m}]", member=m) for m, model in parents]
    stages = find_stages(networks, plan.blocks)
    alignment = Alignment(stages, plan.slots, plan.similarities, plan.base)
    setting = build_setting(networks, alignment, call)
    return setting, plan.partitions(setting)
