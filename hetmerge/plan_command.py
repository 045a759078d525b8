"""`hetmerge plan`: what a merge will make and take, before it is made.

Of Hugging Face directories no weight is read; what is merged in memory is loaded and calibrated.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from hetmerge.batches import Call, Joint, as_call
from hetmerge.config import MergeConfig, bytes_of, read_config
from hetmerge.cost import size_of
from hetmerge.forecast import Forecast, forecast
from hetmerge.in_memory import plan_in_memory, polish_of_plan, summary
from hetmerge.inputs import TEXT_BATCH, array_batches
from hetmerge.memory import total
from hetmerge.options import Options
from hetmerge.partial import PartialModel
from hetmerge.reading import find_parents, open_parents, options_of, polish_of, vocabulary_of
from hetmerge.windows import evenly

if TYPE_CHECKING:
    from hetmerge.applying import Prepared
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
        ready = plan_in_memory(config, parents, False if as_json else None).ready
        return json.dumps(_known(ready, config)) if as_json else _text_in_memory(ready, config)
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


def _known(ready: Prepared, config: MergeConfig) -> dict[str, Any]:
    """A plan that was made in memory as plain data."""
    plan, model, polish = ready.plan, ready.made.network.model, polish_of_plan(ready, config)
    whole = plan.options.stop_at is None
    return {
        "parents": plan.parents,
        "model": type(model).__name__ if whole else PartialModel.__name__,
        "parameters": sum(p.numel() for p in model.parameters()) if whole else None,
        "slots": dict(zip(plan.stages, zip(*plan.slots, strict=True), strict=True)),
        "widths": {
            space.name: [[None if x is None else x.shape[-1] for x in space.labels], space.width]
            for space in plan.spaces
        },
        "trials": plan.trials,
        "cost": asdict(ready.cost),
        "polish": asdict(polish) if polish else None,
        "notes": list(plan.notes),
    }


def _text_in_memory(ready: Prepared, config: MergeConfig) -> str:
    model = ready.made.network.model
    lines = [
        "this merge runs in memory: its parents were loaded, and calibrated for this plan",
        summary(ready, config),
    ]
    if ready.plan.options.stop_at is None:
        count = sum(p.numel() for p in model.parameters())
        kind = getattr(torch, config.out_dtype or config.dtype)
        taken = count * kind.itemsize
        free = shutil.disk_usage(Path()).free
        lines.append(
            f"result: {type(model).__name__}, {count:,} parameters, {size_of(taken)}; "
            f"{size_of(free)} free here"
        )
    return "\n".join(lines)


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
    maps = f", {size_of(found.maps_bytes)} in the plan" if found.maps_bytes else ""
    lines.append(
        f"disk: {size_of(found.bytes)} as {found.dtype} in about {shards} file(s){maps}; "
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
        "of matrix products; reading, and matching without selections, come on top"
    )
    if found.polish:
        lines.append(f"{found.polish.summary()}; the disk holds the result twice meanwhile")
    problems = []
    if found.bytes * (2 if found.polish else 1) + 2 * found.maps_bytes > free:
        problems.append("the disk is too small for the result, and its plan while it is made")
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
