"""Scores of language models on the tasks of lm-eval, the evaluation harness."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from torch import nn

from hetmerge.errors import InputError


class Tasks:
    """Tasks by name, found before any model is loaded.

    Args:
        names: of tasks, groups or tags of lm-eval, or patterns such as "arc_*".
        folder: with more tasks as YAML files; None: only those that lm-eval brings.
        limit: examples of each task, from its start; None: all.

    Raises:
        InputError: lm-eval is not installed, no name is given, or one is unknown.
    """

    def __init__(
        self, names: Sequence[str], folder: Path | None = None, limit: int | None = None
    ) -> None:
        if limit is not None and limit < 1:
            raise InputError(f"limit: got {limit}; allowed: a whole number from 1")
        if folder is not None and not folder.is_dir():
            raise InputError(f"include-path: {folder} is not a folder")
        try:
            from lm_eval.tasks import TaskManager
        except ImportError as error:
            raise InputError(
                "tasks: scores need lm-eval, which is not installed: pip install hetmerge[eval]"
            ) from error
        self.manager = TaskManager(include_path=str(folder) if folder else None)
        self.limit = limit
        self.names: list[str] = []
        for name in names:
            found = self.manager.match_tasks([name])
            if not found:
                near = get_close_matches(name, self.manager.all_tasks, 1)
                hint = f"did you mean {near[0]!r}?" if near else "`lm-eval ls tasks` lists them"
                raise InputError(f"tasks: lm-eval has no task {name!r}; {hint}")
            self.names += [task for task in found if task not in self.names]
        if not self.names:
            raise InputError("tasks: got none; allowed: one or more names, such as arc_easy")

    def score(self, model: nn.Module, tokenizer: Any, batch_size: int = 1) -> dict[str, float]:
        """The metrics of one causal transformers model, "task metric" -> value.

        lm-eval sets the seeds of Python, NumPy and torch.

        Raises:
            InputError: a task's data cannot be had, or it does not fit the model or its tokenizer.
        """
        from lm_eval import simple_evaluate
        from lm_eval.models.huggingface import HFLM

        if tokenizer.bos_token_id is None and tokenizer.eos_token_id is None:
            raise InputError(
                f"tasks: the tokenizer of {tokenizer.name_or_path} has neither a begin nor an end "
                "token; lm-eval needs one of them to begin a text with"
            )
        harness = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch_size)
        try:
            found = simple_evaluate(
                model=harness,
                tasks=list(self.names),
                limit=self.limit,
                task_manager=self.manager,
                log_samples=False,
                bootstrap_iters=0,
            )
        except Exception as error:
            reason = " ".join(str(error).split())[:200]
            raise InputError(
                f"tasks: {', '.join(self.names)} cannot be scored ({type(error).__name__}: "
                f"{reason})"
            ) from error
        assert found is not None
        return self._named(found["results"])

    def _named(self, results: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
        """What was asked for; the members of tags, which have no score of their own."""
        known = {task: _metrics(values) for task, values in results.items()}
        complete = all(known.get(name) for name in self.names)
        part = "" if self.limit is None else f", first {self.limit}"
        return {
            f"{task} {metric}{part}": value
            for task in (self.names if complete else known)
            for metric, value in known[task].items()
        }


def _metrics(values: Mapping[str, Any]) -> dict[str, float]:
    """Metric (and filter, where there is one) -> value, from keys such as "acc,none"."""
    found = {}
    for key, value in values.items():
        metric, comma, kind = key.partition(",")
        if comma and not metric.endswith("_stderr") and isinstance(value, (int, float)):
            found[metric if kind == "none" else f"{metric} ({kind})"] = float(value)
    return found
