"""What lies beside the weights of a merged Hugging Face model: tokenizer, generation, card."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from hetmerge.card import model_card
from hetmerge.planning import AlignmentPlan
from hetmerge.reading import Parents
from hetmerge.report import Report

CARD, CONFIG_COPY = "README.md", "hetmerge.yaml"
COPIED = ("generation_config.json",)
FIRST = ("preprocessor_config.json",)


def write_companions(
    folder: Path,
    parents: Parents,
    tokenizer: Any,
    report: Report,
    plan: AlignmentPlan,
    configuration: str,
) -> None:
    """Write them into the folder of a merged model that transformers loads.

    The generation settings are those of the parent whose token ids the model keeps. Models of
    images get the first parent's preprocessing.

    Args:
        tokenizer: the merged network's, with its chat template; None without text.
        configuration: the YAML of the merge, for the card.
    """
    if tokenizer is not None and parents.language is not None:
        tokenizer.save_pretrained(folder)
        _copy(parents.language.folders[parents.language.source], folder, COPIED)
    elif parents.folders:
        _copy(parents.folders[0], folder, FIRST)
    text = model_card(report, plan, configuration)
    (folder / CARD).write_text(text, encoding="utf-8")


def _copy(source: Path, folder: Path, names: tuple[str, ...]) -> None:
    for name in names:
        if (source / name).is_file():
            shutil.copyfile(source / name, folder / name)
