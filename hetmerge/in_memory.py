"""The parents of a configuration as whole modules, and the plan of merging them in memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from hetmerge.applying import Prepared, prepare
from hetmerge.config import MergeConfig
from hetmerge.massive import without_massive
from hetmerge.planning import plan_statistics
from hetmerge.polish_cost import PolishCost, polish_cost
from hetmerge.reading import (
    Parents,
    calibration_batches,
    evaluation_windows,
    load_parents,
    options_of,
    polish_of,
    vocabulary_of,
)
from hetmerge.windows import Windows


@dataclass(frozen=True)
class InMemory:
    """A merge that is planned and not yet carried out.

    Attributes:
        models: the parents.
        tokenizer: the merged network's; None where calibration is no text.
        held_out: windows that parents and result are scored on; none if not asked for.
        ready: the plan, and the projected network.
    """

    models: list[nn.Module]
    tokenizer: Any
    held_out: list[Windows]
    ready: Prepared


def plan_in_memory(config: MergeConfig, parents: Parents, progress: bool | None) -> InMemory:
    """Load the parents and their inputs, and plan.

    Args:
        progress: show bars on standard error; None: only on a terminal.
    """
    models = load_parents(config, parents)
    vocabulary, tokenizer = vocabulary_of(parents.language, models)
    batches = calibration_batches(config, parents.language, tokenizer)
    if config.calibration.exclude_massive:
        batches = without_massive(models, batches, progress=progress)
    held_out = evaluation_windows(config, parents.language, tokenizer)
    plan, statistics, partitions = plan_statistics(
        models, batches, vocabulary=vocabulary, progress=progress, **options_of(config)
    )
    ready = prepare(plan, statistics.setting, partitions, statistics.calls)
    return InMemory(models, tokenizer, held_out, ready)


def polish_of_plan(ready: Prepared, config: MergeConfig) -> PolishCost | None:
    """What training the finished merge will take; None where it is not asked for."""
    polish = polish_of(config)
    if polish is None:
        return None
    network, setting = ready.made.network, ready.made.projector.setting
    return polish_cost(network, setting, ready.calls, polish.steps, getattr(torch, config.dtype))


def summary(ready: Prepared, config: MergeConfig) -> str:
    """The plan and its cost in words."""
    polish = polish_of_plan(ready, config)
    parts = [ready.plan.summary(), ready.cost.summary(), *([polish.summary()] if polish else [])]
    return "\n".join(parts)
