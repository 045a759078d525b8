"""`hetmerge merge`: check everything, load, plan, apply, and write the output in one step."""

import shutil
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from hetmerge.applying import MergeResult, Prepared
from hetmerge.casting import cast_model
from hetmerge.checkpoints import save
from hetmerge.companions import CONFIG_COPY, write_companions
from hetmerge.config import MergeConfig, bytes_of, read_config
from hetmerge.errors import InputError
from hetmerge.files import check_new
from hetmerge.folder_merge import merge_to
from hetmerge.huggingface import is_pretrained
from hetmerge.in_memory import plan_in_memory, summary
from hetmerge.lazy import Checkpoint, open_checkpoint
from hetmerge.perplexity import score
from hetmerge.planning import AlignmentPlan
from hetmerge.polishing import Polished, train
from hetmerge.progress import Progress
from hetmerge.reading import (
    Parents,
    calibration_batches,
    evaluation_windows,
    find_parents,
    open_parents,
    options_of,
    polish_of,
    vocabulary_of,
)
from hetmerge.report import Report
from hetmerge.teaching import Teacher

if TYPE_CHECKING:
    from rich.console import Console

Model = TypeVar("Model")


def run(config_path: Path, out: Path, console: "Console | None", polish: int | None = None) -> None:
    """Do what the configuration says.

    Hugging Face directories are read and written tensor by tensor; other parents, and partial
    merges, are merged in memory.

    Args:
        config_path: the YAML file.
        out: folder to write; must not exist, its parent must.
        console: where to print the plan and the report; None prints nothing.
        polish: steps of training that take the place of the configuration's.
    """
    config = read_config(config_path, polish)
    _check(out)
    parents = find_parents(config)
    models = open_parents(config, parents)
    if models is None:
        result = _merge_in_memory(config, config_path, parents, out, console)
    else:
        result = _merge_on_disk(config, config_path, parents, models, out, console)
    if console:
        _print_report(console, result.report)
        console.print(f"written to {out}", markup=False, highlight=False, soft_wrap=True)


def _merge_on_disk(
    config: MergeConfig,
    config_path: Path,
    parents: Parents,
    models: list[Checkpoint],
    out: Path,
    console: "Console | None",
) -> MergeResult:
    vocabulary, tokenizer = vocabulary_of(parents.language, [model.module for model in models])
    batches = calibration_batches(config, parents.language, tokenizer)
    held_out = evaluation_windows(config, parents.language, tokenizer)

    def prepared(plan: AlignmentPlan, ready: Prepared) -> None:
        _show(console, ready, config)

    def finished(folder: Path, result: MergeResult) -> None:
        result.report.sources = parents.described(config)
        like = models[0].state
        merged = open_checkpoint(folder, like.dtype, like.device) if held_out else None
        for m, (who, model) in enumerate(_scored(models, merged) if merged else ()):
            result.report.scores[who] = score(model, held_out, m)
        configuration = config_path.read_text(encoding="utf-8")
        (folder / CONFIG_COPY).write_text(configuration, encoding="utf-8")
        write_companions(folder, parents, tokenizer, result.report, result.plan, configuration)

    return merge_to(
        out,
        models,
        batches,
        dtype=getattr(torch, config.dtype),
        out_dtype=getattr(torch, config.out_dtype) if config.out_dtype else None,
        shard_bytes=bytes_of(config.max_shard_size),
        vocabulary=vocabulary,
        exclude_massive=config.calibration.exclude_massive,
        polish=polish_of(config),
        prepared=prepared,
        finished=finished,
        progress=None if console else False,
        **options_of(config),
    )


def _merge_in_memory(
    config: MergeConfig, config_path: Path, parents: Parents, out: Path, console: "Console | None"
) -> MergeResult:
    progress = None if console else False
    planned = plan_in_memory(config, parents, progress)
    ready, tokenizer, held_out = planned.ready, planned.tokenizer, planned.held_out
    _show(console, ready, config)
    result = ready.run(Progress(progress))
    if polish := polish_of(config):
        began = time.perf_counter()
        teacher = Teacher(ready.made.projector, ready.calls, ready.plan, ready.refit)
        result.report.polish = asdict(train(result.model, teacher, polish, Progress(progress)))
        result.report.seconds["polish"] = time.perf_counter() - began
    if config.out_dtype:
        cast_model(result.model, getattr(torch, config.out_dtype))
    result.report.sources = parents.described(config)
    for m, (who, model) in enumerate(_scored(planned.models, result.model) if held_out else ()):
        result.report.scores[who] = score(model, held_out, m)
    _write(result, parents, tokenizer, config, config_path, out)
    return result


def _show(console: "Console | None", ready: Prepared, config: MergeConfig) -> None:
    if console:
        console.print(summary(ready, config), markup=False, highlight=False, soft_wrap=True)


def _check(out: Path) -> None:
    check_new(out)
    if not out.absolute().parent.is_dir():
        raise InputError(f"{out}: {out.absolute().parent} is not a folder")


def _scored(models: Sequence[Model], merged: Model) -> list[tuple[str, Model]]:
    return [*((f"parent {m}", model) for m, model in enumerate(models)), ("merged", merged)]


def _write(
    result: MergeResult,
    parents: Parents,
    tokenizer: Any,
    config: MergeConfig,
    config_path: Path,
    out: Path,
) -> None:
    """The whole folder beside `out`, then one rename; nothing is left when a step fails."""
    with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.absolute().parent) as holder:
        draft = Path(holder) / out.name
        save(result, draft, config.max_shard_size)
        shutil.copyfile(config_path, draft / CONFIG_COPY)
        if is_pretrained(result.model):
            configuration = config_path.read_text(encoding="utf-8")
            write_companions(draft, parents, tokenizer, result.report, result.plan, configuration)
        check_new(out)
        draft.rename(out)


def _print_report(console: "Console", report: Report) -> None:
    lines = {
        "parameters": " + ".join(f"{count:,}" for count in report.parameters)
        + f" -> {report.merged_parameters:,}",
        "MFLOPs": " + ".join(f"{count / 1e6:,.4g}" for count in report.flops)
        + f" -> {report.merged_flops / 1e6:,.4g}",
    }
    if report.exact:
        lines["exact"] = "nothing was averaged: the outputs are the parents' own by construction"
    if report.fits:
        before, after = (
            sum(fit[key] for fit in report.fits) / len(report.fits) for key in ("before", "after")
        )
        lines["refit"] = (
            f"{len(report.fits)} layer groups; mean variance explained {before:.3f} -> {after:.3f}"
        )
    if report.polish:
        lines["polish (training)"] = str(Polished(**report.polish))
    if report.left_out:
        lines["left as it was"] = "; ".join(f"{k}: {v}" for k, v in report.left_out.items())
    for who, scores in report.scores.items():
        lines[who] = ", ".join(f"{name} {value:.4g}" for name, value in scores.items())
    lines |= {f"seconds, {part}": f"{value:.1f}" for part, value in report.seconds.items()}
    width = max(map(len, lines))
    for name, text in lines.items():
        console.print(f"{name:<{width}}  {text}", markup=False, highlight=False, soft_wrap=True)
