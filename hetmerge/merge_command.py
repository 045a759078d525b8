"""`hetmerge merge`: check everything, load, plan, apply, and write the output in one step."""

import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from hetmerge.applying import MergeResult, prepare
from hetmerge.casting import cast_model
from hetmerge.checkpoints import save
from hetmerge.companions import write_companions
from hetmerge.config import MergeConfig, read_config
from hetmerge.errors import InputError
from hetmerge.files import check_new
from hetmerge.huggingface import is_pretrained
from hetmerge.language import Language
from hetmerge.perplexity import score
from hetmerge.planning import plan_statistics
from hetmerge.progress import Progress
from hetmerge.reading import (
    Parents,
    calibration_batches,
    evaluation_windows,
    find_parents,
    load_parents,
)
from hetmerge.report import Report
from hetmerge.vocabulary import Vocabulary, embedding_rows

if TYPE_CHECKING:
    from rich.console import Console

CONFIG_COPY = "hetmerge.yaml"


def run(config_path: Path, out: Path, console: "Console | None") -> None:
    """Do what the configuration says.

    Args:
        config_path: the YAML file.
        out: folder to write; must not exist, its parent must.
        console: where to print the plan and the report; None prints nothing.
    """
    config = read_config(config_path)
    _check(out)
    parents = find_parents(config)
    models = load_parents(config, parents)
    vocabulary, tokenizer = _vocabulary(parents.language, models)
    batches = calibration_batches(config, parents.language)
    held_out = evaluation_windows(config, parents.language, tokenizer)
    options = {
        **config.parameters.model_dump(),
        "match": config.merge_method,
        "weights": config.weights,
    }
    progress = None if console else False
    plan, statistics, partitions = plan_statistics(
        models, batches, vocabulary=vocabulary, progress=progress, **options
    )
    prepared = prepare(plan, statistics.setting, partitions, statistics.calls)
    if console:
        text = f"{plan.summary()}\n{prepared.cost.summary()}"
        console.print(text, markup=False, highlight=False, soft_wrap=True)
    result = prepared.run(Progress(progress))
    if config.out_dtype:
        cast_model(result.model, getattr(torch, config.out_dtype))
    result.report.sources = parents.described(config)
    for m, (who, model) in enumerate(_scored(models, result.model) if held_out else ()):
        result.report.scores[who] = score(model, held_out, m)
    _write(result, parents, tokenizer, config, config_path, out)
    if console:
        _print_report(console, result.report)
        console.print(f"written to {out}", markup=False, highlight=False, soft_wrap=True)


def _check(out: Path) -> None:
    check_new(out)
    if not out.absolute().parent.is_dir():
        raise InputError(f"{out}: {out.absolute().parent} is not a folder")


def _vocabulary(
    language: Language | None, models: Sequence[nn.Module]
) -> tuple[Vocabulary | None, Any]:
    """Which rows of the vocabulary meet, and the merged network's tokenizer."""
    if language is None:
        return None, None
    if not language.shared:
        language.adopt_ids([model.config for model in models])
    return language.vocabulary([embedding_rows(model) for model in models])


def _scored(models: Sequence[nn.Module], merged: nn.Module) -> list[tuple[str, nn.Module]]:
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
    if report.left_out:
        lines["left as it was"] = "; ".join(f"{k}: {v}" for k, v in report.left_out.items())
    for who, scores in report.scores.items():
        lines[who] = ", ".join(f"{name} {value:.4g}" for name, value in scores.items())
    lines |= {f"seconds, {part}": f"{value:.1f}" for part, value in report.seconds.items()}
    width = max(map(len, lines))
    for name, text in lines.items():
        console.print(f"{name:<{width}}  {text}", markup=False, highlight=False, soft_wrap=True)
