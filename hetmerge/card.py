"""The model card of a merged Hugging Face model."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

import yaml

from hetmerge.polishing import Polished
from hetmerge.repeating import stands_at

if TYPE_CHECKING:
    from hetmerge.planning import AlignmentPlan
    from hetmerge.report import Report

MATCHES = {
    "zip": "features that correlate are averaged, within a parent too (elastic zip)",
    "permute": "features are paired one to one and averaged",
    "select": "the features from which the others are best read off are kept",
    "pca": "residual streams keep their principal directions, heads are kept whole, of everything "
    "else the features from which the others are best read off",
    "identity": "features meet by position",
    "auto": "several ways are merged for a trial, the best trial is taken",
}


def model_card(report: Report, plan: AlignmentPlan, configuration: str) -> str:
    """Markdown with the header that the hub reads: parents, method, sizes, scores, how to repeat.

    Args:
        report: of the merge; its `sources` name the parents.
        plan: of the merge.
        configuration: the YAML it was made from.
    """
    options = report.options
    repeats = "; missing ones repeat the one before" if options["missing"] == "repeat" else ""
    refit = (
        "solved in closed form on the calibration inputs" if options["refit"] else "not refitted"
    )
    polish = Polished(**report.polish) if report.polish else None
    trained = f"and then trained: {polish.steps} steps (polish)" if polish else "without training"
    parts = [
        _header(report),
        "# Merged model",
        f"Made by merging {len(report.parameters)} models of different shape into one with "
        f"hetmerge on {report.date}, {trained}.",
        "## Parents",
        _table(
            ("", "model", "revision", "commit", "class", "parameters", "weight"),
            _parents(report, plan),
        ),
        "## Method",
        f"- features: `{options['match']}`: {MATCHES[options['match']]}",
        f"- layers: `{options['depth']}`, {_depths(plan)}{repeats}",
        f"- layers of the result: {refit}",
        f"- calibration: {report.samples:,} inputs",
        f"- parameters: {' + '.join(f'{n:,}' for n in report.parameters)} -> "
        f"{report.merged_parameters:,}",
    ]
    parts += [f"- polish: {polish}"] if polish else []
    parts += [f"- {note}" for note in report.notes]
    parts += ["## Widths", _table(("space", "parents", "merged"), _widths(report))]
    if report.scores:
        names = list(dict.fromkeys(n for found in report.scores.values() for n in found))
        rows = [
            [who, *(f"{found[n]:.4g}" if n in found else "" for n in names)]
            for who, found in report.scores.items()
        ]
        parts += ["## Evaluation", "On held-out text or tasks:", _table(("", *names), rows)]
    again = f" --polish {polish.steps}" if polish else ""
    parts += [
        "## How to repeat it",
        f"Save this as `config.yaml` and run `hetmerge merge config.yaml out{again}`:",
        f"```yaml\n{configuration.strip()}\n```",
        f"Versions: {', '.join(_versions())}.",
    ]
    return "\n\n".join(_joined(parts)) + "\n"


def _header(report: Report) -> str:
    """YAML for the hub; only ids of the hub may stand under base_model."""
    ids = [str(source["name"]) for source in report.sources if source.get("sha")]
    body: dict[str, Any] = {"library_name": "transformers", "tags": ["hetmerge", "merge"]}
    if ids:
        body = {"base_model": ids, "base_model_relation": "merge", **body}
    return f"---\n{yaml.safe_dump(body, sort_keys=False)}---"


def _parents(report: Report, plan: AlignmentPlan) -> Iterable[Sequence[str]]:
    for m, (count, weight) in enumerate(zip(report.parameters, report.weights, strict=True)):
        source = report.sources[m] if m < len(report.sources) else {}
        shown = [source.get(key) or "" for key in ("name", "revision", "sha")]
        kind = str(plan.parents[m]["class"]).rpartition(".")[2]
        yield [f"parent {m}", *shown, kind, f"{count:,}", f"{weight:.3g}"]


def _depths(plan: AlignmentPlan) -> str:
    shown = []
    for s, name in enumerate(plan.stages):
        counts = [len(stands_at(slots[s])) for slots in plan.slots]
        shown.append(f"{name}: {' + '.join(map(str, counts))} -> {len(plan.slots[plan.base][s])}")
    return "; ".join(shown)


def _widths(report: Report) -> Iterable[Sequence[str]]:
    """One row for the spaces of all layers that are alike."""
    seen: dict[tuple[str, str, str], None] = {}
    for space in report.spaces:
        sizes = " + ".join("-" if n is None else str(n) for n in space.sizes)
        name = ".".join("*" if part.isdigit() else part for part in space.name.split("."))
        if len(space.sizes) > 1:
            seen[name, sizes, str(space.width)] = None
    return seen


def _versions() -> Iterable[str]:
    for name in ("hetmerge", "torch", "transformers", "tokenizers", "lm_eval"):
        try:
            yield f"{name} {version(name)}"
        except PackageNotFoundError:
            continue


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    def line(cells: Iterable[str]) -> str:
        return "| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |"

    return "\n".join([line(head), line("---" for _ in head), *map(line, rows)])


def _joined(parts: Sequence[str]) -> Iterable[str]:
    """Items of a list stand under each other without a blank line."""
    items: list[str] = []
    for part in parts:
        if part.startswith("- "):
            items.append(part)
            continue
        if items:
            yield "\n".join(items)
            items = []
        yield part
    if items:
        yield "\n".join(items)
