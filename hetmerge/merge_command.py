"""`hetmerge merge`: check everything, load, plan, apply, and write the output in one step."""

import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from hetmerge.applying import MergeResult, prepare
from hetmerge.config import MergeConfig, read_config
from hetmerge.errors import InputError
from hetmerge.files import check_new
from hetmerge.inputs import array_batches, token_batches
from hetmerge.planning import plan_statistics
from hetmerge.progress import Progress
from hetmerge.report import Report
from hetmerge.sources import check_source, is_huggingface, load_model, load_tokenizer

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
    _check(config, out)
    models = _models(config)
    batches = _batches(config)
    options = {
        **config.parameters.model_dump(),
        "match": config.merge_method,
        "weights": config.weights,
    }
    progress = None if console else False
    plan, statistics, partitions = plan_statistics(models, batches, progress=progress, **options)
    prepared = prepare(plan, statistics.setting, partitions, statistics.calls)
    if console:
        text = f"{plan.summary()}\n{prepared.cost.summary()}"
        console.print(text, markup=False, highlight=False, soft_wrap=True)
    result = prepared.run(Progress(progress))
    if config.out_dtype:
        result.model.to(getattr(torch, config.out_dtype))
    _write(result, config, config_path, out)
    if console:
        _print_report(console, result.report)
        console.print(f"written to {out}", markup=False, highlight=False, soft_wrap=True)


def _check(config: MergeConfig, out: Path) -> None:
    """Everything that can be told wrong before a weight is read."""
    check_new(out)
    if not out.absolute().parent.is_dir():
        raise InputError(f"{out}: {out.absolute().parent} is not a folder")
    if not Path(config.calibration.path).is_file():
        raise InputError(f"calibration.path: {config.calibration.path} is not a file")
    for source in config.models:
        if source.model is not None:
            check_source(source.model)
    if config.calibration.is_text and not _tokenizer_folder(config):
        raise InputError("calibration.path: text needs a Hugging Face directory as first model")


def _models(config: MergeConfig) -> list[nn.Module]:
    dtype = getattr(torch, config.dtype)
    return [load_model(source.model or source.python or "", dtype) for source in config.models]


def _batches(config: MergeConfig) -> list[Any]:
    folder = _tokenizer_folder(config)
    if not config.calibration.is_text or folder is None:
        return array_batches(config.calibration, getattr(torch, config.dtype))
    base = load_tokenizer(folder)
    for source in config.models[1:]:
        if source.model and load_tokenizer(Path(source.model)).get_vocab() != base.get_vocab():
            raise InputError(f"{source.model}: its vocabulary differs from that of {folder}")
    return token_batches(
        config.calibration, lambda text: base(text, add_special_tokens=False)["input_ids"]
    )


def _tokenizer_folder(config: MergeConfig) -> Path | None:
    first = config.models[0].model
    return Path(first) if first and is_huggingface(Path(first)) else None


def _write(result: MergeResult, config: MergeConfig, config_path: Path, out: Path) -> None:
    """The whole folder beside `out`, then one rename; nothing is left when a step fails."""
    with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.absolute().parent) as holder:
        draft = Path(holder) / out.name
        result.save(draft)
        shutil.copyfile(config_path, draft / CONFIG_COPY)
        tokenizer = _tokenizer_folder(config)
        if tokenizer and config.calibration.is_text:
            load_tokenizer(tokenizer).save_pretrained(draft)
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
    lines |= {f"seconds, {part}": f"{value:.1f}" for part, value in report.seconds.items()}
    width = max(map(len, lines))
    for name, text in lines.items():
        console.print(f"{name:<{width}}  {text}", markup=False, highlight=False, soft_wrap=True)
