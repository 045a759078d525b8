"""What a merge will do and what it did, for a person and as plain data."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

from torch import nn
from torch.export import ExportedProgram

from hetmerge.agreement import Agreement
from hetmerge.flops import flops_of
from hetmerge.partition import Partition
from hetmerge.repeating import stands_at
from hetmerge.setting import Setting
from hetmerge.tracing import export

if TYPE_CHECKING:
    from collections.abc import Mapping

    from hetmerge.planning import AlignmentPlan
    from hetmerge.refit import Refit


@dataclass
class SpaceReport:
    """One space: its sizes in the parents, merged width, features that share a cluster."""

    name: str
    sizes: list[int | None]
    width: int
    merged: int
    free: bool
    agreement: Agreement | None


@dataclass
class Report:
    """What a merge did.

    Attributes:
        parameters: of every parent.
        merged_parameters: of the result.
        flops: of every parent, floating point operations per sample (two per multiply-add) of its
            convolutions and matrix products, at the sizes of the first batch.
        merged_flops: of the result.
        segments: stage -> merged positions of the units of its shallowest parent.
        spaces: what happened to each space.
        fits: per layer group, share of its targets' variance explained before and after refit,
            rows and inputs of its system, and its ridge.
        left_out: layer -> why refit left it as it was.
        exact: the result is the parents' average (or their outputs side by side) by construction.
        replaced: shortcuts that became 1x1 convolutions.
        notes: remarks for the user.
        polish: of a merged model that was then trained (polished): steps, learning rate, loss, and
            the loss before and after; None: no gradient step was taken.
        seconds: of the parts that were run.
        scores: who -> name -> value, from :meth:`hetmerge.applying.MergeResult.compare`, or
            perplexity and bits per byte of language models, and their scores on tasks.
        sources: per parent, its name, the revision asked for and the hub's commit, where the merge
            was made from a configuration.
        date: of the day the merge was begun, UTC.
    """

    parameters: list[int]
    merged_parameters: int
    flops: list[int]
    merged_flops: int
    samples: int
    weights: list[float]
    options: dict[str, Any]
    segments: dict[str, list[int]]
    spaces: list[SpaceReport]
    fits: list[dict[str, Any]]
    left_out: dict[str, str]
    exact: bool
    replaced: list[str]
    notes: list[str]
    polish: dict[str, Any] | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    scores: dict[str, dict[str, float]] = field(default_factory=dict)
    sources: list[dict[str, str | None]] = field(default_factory=list)
    date: str = field(default_factory=lambda: datetime.now(timezone.utc).date().isoformat())

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, body: dict[str, Any]) -> Report:
        """A report from its plain data; KeyError or TypeError where that is something else."""
        spaces = [
            SpaceReport(**{**s, "agreement": s["agreement"] and Agreement(**s["agreement"])})
            for s in body["spaces"]
        ]
        return cls(**{**body, "spaces": spaces})


def make_report(
    plan: AlignmentPlan,
    setting: Setting,
    partitions: Mapping[int, Partition],
    model: nn.Module,
    refit: Refit,
    exact: bool,
    program: ExportedProgram | None = None,
) -> Report:
    """Gather what is known after a merge.

    Args:
        program: what the merged model runs, where that is known.
    """
    spaces = setting.skeleton.graph.spaces
    parents = range(len(setting.parents))
    agreements = {space.name: space.agreement for space in plan.spaces}
    return Report(
        parameters=[parent["parameters"] for parent in plan.parents],
        merged_parameters=sum(p.numel() for p in model.parameters()),
        flops=[flops_of(p.graph.program, setting.call, p.replaced) for p in setting.parents],
        merged_flops=flops_of(program or export(model, *setting.call), setting.call),
        samples=plan.samples,
        weights=plan.weights,
        options=plan.options.to_dict(),
        segments=plan.segments,
        spaces=[
            SpaceReport(
                spaces[k].name,
                [p.labels[m].shape[-1] if m in p.labels else None for m in parents],
                p.width,
                p.merged,
                spaces[k].free,
                agreements[spaces[k].name],
            )
            for k, p in partitions.items()
        ],
        fits=[asdict(fit) for fit in refit.fits],
        left_out=refit.left_out,
        exact=exact,
        replaced=list(
            setting.skeleton.replaced or setting.parents[setting.alignment.base].replaced
        ),
        notes=[*plan.notes, *refit.notes],
    )


def summarise(plan: AlignmentPlan) -> str:
    """A plan in words: parents, depth, width per space, remarks."""
    lines = [
        f"{len(plan.parents)} parents, {plan.samples} calibration inputs, "
        f"match {plan.options.match}"
    ]
    for m, (parent, weight) in enumerate(zip(plan.parents, plan.weights, strict=True)):
        lines.append(
            f"  models[{m}]: {parent['class']}, {parent['parameters']:,} parameters, "
            f"weight {weight:.3g}"
        )
    for s, name in enumerate(plan.stages):
        counts = [len(stands_at(slots[s])) for slots in plan.slots]
        depths = " + ".join(str(c) for c in counts)
        lines.append(
            f"  stage {name}: {depths} units -> {len(plan.slots[plan.base][s])}, "
            f"placed at {plan.segments[name]}"
        )
    for space in plan.spaces:
        if space.free:
            sizes = " + ".join("-" if x is None else str(x.shape[-1]) for x in space.labels)
            kind = " directions" if space.writes else ""
            lines.append(f"  space {space.name}: {sizes} -> {space.width}{kind}")
    if plan.options.stop_at is not None:
        lines.append(f"  stop at {plan.options.stop_at}: behind it one head per parent, not merged")
    lines += [f"  note: {note}" for note in plan.notes]
    return "\n".join(lines)
