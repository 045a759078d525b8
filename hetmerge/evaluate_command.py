"""`hetmerge evaluate`: a merged model and its parents on tasks of lm-eval, into the report."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from hetmerge.card import model_card
from hetmerge.companions import CARD, CONFIG_COPY
from hetmerge.devices import known_device
from hetmerge.errors import CheckpointError, InputError
from hetmerge.files import replace_file
from hetmerge.folder_merge import PLAN
from hetmerge.hub import fetch, find
from hetmerge.page import render
from hetmerge.perplexity import is_causal
from hetmerge.planning import AlignmentPlan
from hetmerge.pretrained import architecture_of, is_huggingface, load_pretrained, load_tokenizer
from hetmerge.report import Report
from hetmerge.sources import be_silent
from hetmerge.task_scores import Tasks

REPORT = "report.json"


def run(
    folder: Path,
    names: Sequence[str],
    limit: int | None,
    include_path: Path | None,
    batch_size: int,
    device: str,
) -> str:
    """Score the parents and the merged model, and write the scores beside it.

    Args:
        folder: that `hetmerge merge` wrote; its parents are where they were, seen from here.
        names: of tasks.
        limit: examples of each task; None: all.
        include_path: folder of more tasks.
        batch_size: of the models' inputs.
        device: to run on.

    Returns:
        What to print.

    Raises:
        InputError, CheckpointError: whatever is wrong with the folder, the parents or the tasks;
            the report stays as it was.
    """
    report = _report(folder)
    models, left_out = _models(folder, report)
    where = known_device(device)
    tasks = Tasks(names, include_path, limit)
    be_silent()
    for who, path in models.items():
        model = load_pretrained(path)
        model.to(where)
        found = tasks.score(model, load_tokenizer(path), batch_size)
        report.scores[who] = {**report.scores.get(who, {}), **found}
        del model
    _write(folder, report)
    lines = [
        f"{who}: " + ", ".join(f"{name} {value:.4g}" for name, value in report.scores[who].items())
        for who in models
    ]
    return "\n".join([*lines, *left_out])


def _report(folder: Path) -> Report:
    try:
        return Report.from_dict(json.loads((folder / REPORT).read_text(encoding="utf-8")))
    except OSError as error:
        raise CheckpointError(
            f"{folder / REPORT}: cannot be read ({error.strerror or error}); allowed: a folder "
            "that `hetmerge merge` wrote"
        ) from error
    except (ValueError, TypeError, KeyError) as error:
        raise CheckpointError(f"{folder / REPORT}: damaged, or of another release") from error


def _models(folder: Path, report: Report) -> tuple[dict[str, Path], list[str]]:
    """Who -> directory, the merged model last; and why others are left out."""
    models: dict[str, Path] = {}
    left_out = []
    for m, source in enumerate(report.sources):
        name = str(source["name"])
        if not Path(name).is_dir() and ":" in name:
            left_out.append(f"parent {m}: left out; {name} brings no tokenizer")
            continue
        path = fetch(find(f"{name}@{source['sha']}" if source["sha"] else name))
        models[f"parent {m}"] = path
    models["merged"] = folder
    for path in models.values():
        kind = architecture_of(path) if is_huggingface(path) else ""
        if not kind or not is_causal(kind):
            raise InputError(
                f"{path}: is {kind or 'no Hugging Face model'}; allowed for tasks: causal language "
                "models"
            )
    return models, left_out


def _write(folder: Path, report: Report) -> None:
    """The report in all its forms; each file is replaced whole."""
    text = json.dumps(report.to_dict(), indent=1) + "\n"
    replace_file(folder / REPORT, [text.encode()])
    plan = AlignmentPlan.load(folder / PLAN)
    replace_file(folder / "report.html", [render(report, plan).encode()])
    configuration = folder / CONFIG_COPY
    if configuration.is_file():
        card = model_card(report, plan, configuration.read_text(encoding="utf-8"))
        replace_file(folder / CARD, [card.encode()])
