"""`hetmerge plan`: what a merge will make and take, before any weight is read."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from hetmerge.batches import Call, Joint, as_call
from hetmerge.config import MergeConfig, bytes_of, read_config
from hetmerge.cost import size_of
from hetmerge.errors import InputError
from hetmerge.forecast import Forecast, forecast
from hetmerge.inputs import TEXT_BATCH, array_batches
from hetmerge.memory import total
from hetmerge.options import Options
from hetmerge.reading import find_parents, open_parents, options_of, polish_of, vocabulary_of
from hetmerge.windows import evenly

if TYPE_CHECKING:
    from hetmerge.lazy import Checkpoint

SHOWN = 12  # widths in the table


def run(config_path: Path, as_json: bool, polish: int | None = None) -> str:
    """What to print: the forecast for a person, or one line of JSON.

    Args:
        polish: steps of training that take the place of the configuration's.

    Raises:
        ConfigError, InputError, CheckpointError, PlanError: whatever `hetmerge merge` would stop at
            before it reads weights.
    """
    config = read_config(config_path, polish)
    parents = find_parents(config)
    models = open_parents(config, parents)
    if models is None:
        raise InputError(
            "models: a plan is made from Hugging Face directories without BatchNorm or remote "
            "code, and without stop_at or budget; this merge runs in memory, and "
            "`hetmerge merge` shows its plan"
        )
    vocabulary, _ = vocabulary_of(parents.language, [model.module for model in models])
    calls = _calls(config, models, parents.language is not None and not parents.language.shared)
    dtype = getattr(torch, config.out_dtype) if config.out_dtype else None
    options = Options.make(options_of(config))
    found = forecast(models, calls, options, dtype, vocabulary, polish_of(config))
    return json.dumps(found.to_dict()) if as_json else _text(found, config)


def _calls(config: MergeConfig, models: list[Checkpoint], apart: bool) -> list[Call]:
    """Batches of the shapes that the merge will read; of text only the lengths count."""
    calibration = config.calibration
    if not calibration.is_text:
        return [
            as_call(batch) for batch in array_batches(calibration, getattr(torch, config.dtype))
        ]
    length, size = calibration.sequence_length, calibration.batch_size or TEXT_BATCH
    windows = -(-calibration.tokens // length)
    calls: list[Call] = []
    for batch in evenly(windows, size):
        ids = torch.zeros(len(batch), length, dtype=torch.int64)
        call: Call = ((), {"input_ids": ids})
        if apart:
            own: Call = ((), {"input_ids": ids, "attention_mask": torch.ones_like(ids)})
            rows = torch.arange(ids.numel())
            call = Joint(own, (own,) * len(models), (rows,) * (len(models) + 1))
        calls.append(call)
    return calls


def _text(found: Forecast, config: MergeConfig) -> str:
    lines = []
    for m, parent in enumerate(found.parents):
        lines.append(
            f"parent {m}: {parent['folder']}, {parent['class']}, {parent['parameters']:,} "
            f"parameters, {size_of(parent['bytes'])} as {parent['dtype']}"
        )
    changed = ", ".join(f"{name} {value}" for name, value in found.changed.items())
    lines.append(f"result: {found.model}, {found.parameters:,} parameters")
    lines.append(f"  changed in the configuration: {changed or 'nothing'}")
    shown = list(found.widths.items())[:SHOWN]
    for name, (sizes, width) in shown:
        known = " + ".join("-" if size is None else str(size) for size in sizes)
        lines.append(f"  space {name}: {known} -> {width}")
    if len(found.widths) > len(shown):
        lines.append(f"  and {len(found.widths) - len(shown)} more spaces")
    lines.append(
        f"tensors: {found.merged} from several parents, {found.copied} from one, "
        f"{found.dropped} that nothing reads are dropped"
    )
    free = shutil.disk_usage(Path()).free
    shards = -(-found.bytes // bytes_of(config.max_shard_size))
    lines.append(
        f"disk: {size_of(found.bytes)} as {found.dtype} in about {shards} file(s); "
        f"{size_of(free)} free here"
    )
    trained = f", polish {size_of(found.polish.peak_bytes)}" if found.polish else ""
    stages = (
        f"planning {size_of(found.planning_bytes)}, applying {size_of(found.applying_bytes)}"
        f"{trained}"
    )
    process = f"over {size_of(found.process_bytes)} of the process"
    here = f"this machine has {size_of(total())}"
    if found.device == "cpu":
        lines.append(
            f"memory: peak {size_of(found.peak_bytes)} ({stages}, {process}); {here}; no GPU "
            "memory is used"
        )
    else:
        lines += [
            f"memory: peak {size_of(found.peak_bytes)} ({process}); {here}",
            f"memory of {found.device}: peak {size_of(found.working_bytes)} ({stages}); it has "
            f"{size_of(total(found.device))}",
        ]
    lines.append(
        f"work: {found.flops / 1e12:,.1f} TFLOP, {_duration(found.seconds)} at this machine's rate "
        "of matrix products; matching and reading come on top"
    )
    if found.polish:
        lines.append(f"{found.polish.summary()}; the disk holds the result twice meanwhile")
    problems = []
    if found.bytes * (2 if found.polish else 1) > free:
        problems.append("the disk is too small for the result")
    there = found.working_bytes if found.device != "cpu" else 0
    if found.peak_bytes > total() > 0 or there > total(found.device) > 0:
        problems.append(
            "the memory is too small; use fewer calibration tokens, a smaller width, or "
            "merge_method: zip"
        )
    lines += [f"note: {note}" for note in found.notes]
    lines += [f"problem: {problem}" for problem in problems]
    return "\n".join(lines)


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
