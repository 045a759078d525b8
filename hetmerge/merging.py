"""Calibrate, plan and apply in one call."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from torch import nn

from hetmerge.applying import MergeResult, prepare
from hetmerge.planning import plan_statistics
from hetmerge.progress import Progress
from hetmerge.vocabulary import Vocabulary


def merge(
    models: Sequence[nn.Module],
    batches: Iterable[Any],
    *,
    blocks: Sequence[Any] | None = None,
    vocabulary: Vocabulary | None = None,
    progress: bool | None = None,
    **options: Any,
) -> MergeResult:
    """Merge trained networks of different depth and width, without training.

    Args:
        models: two or more parents of one family; never modified.
        batches: calibration inputs without labels: an iterable of tensors, tuples of model inputs,
            or dicts of keyword arguments.
        blocks: stages named by hand: per parent, per stage, the module paths of its blocks.
        vocabulary: of language models with different tokenizers, which rows of their embeddings
            and heads meet (see :func:`hetmerge.vocabulary.base_vocabulary`).
        progress: show bars on standard error; None: only on a terminal.
        **options: see :class:`hetmerge.options.Options`: depth, missing, match, outputs,
            labels, alpha, beta, width, budget, weights, refit, ridge, head, repair, stop_at, names,
            seed, backend.

    Returns:
        The merged model, its plan and a report.
    """
    plan, statistics, partitions = plan_statistics(
        models, batches, blocks=blocks, vocabulary=vocabulary, progress=progress, **options
    )
    prepared = prepare(plan, statistics.setting, partitions, statistics.calls)
    return prepared.run(Progress(progress))
