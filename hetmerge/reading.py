"""The reading half of `hetmerge merge`: parents, their language, and inputs for them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from hetmerge.config import MergeConfig, TextSource
from hetmerge.devices import known_device
from hetmerge.errors import InputError
from hetmerge.hub import Source, fetch, find
from hetmerge.inputs import TEXT_BATCH, array_batches, token_batches
from hetmerge.language import Language, read_language
from hetmerge.lazy import Checkpoint, NeedsMemory, open_checkpoint
from hetmerge.perplexity import is_causal
from hetmerge.polishing import Polish
from hetmerge.pretrained import architecture_of, is_huggingface
from hetmerge.sources import check_source, load_model
from hetmerge.texts import text_of
from hetmerge.vocabulary import Vocabulary, embedding_rows
from hetmerge.windows import Windows, aligned_windows


@dataclass(frozen=True)
class Parents:
    """What a configuration's models stand for, before any weight is read.

    Attributes:
        sources: per parent its directory; None for a Python factory.
        language: how they read text; None where calibration is no text.
    """

    sources: tuple[Source | None, ...]
    language: Language | None

    def described(self, config: MergeConfig) -> list[dict[str, str | None]]:
        """Per parent its name, the revision asked for and the hub's commit, for the report."""
        return [
            {
                "name": source.name if source else model.python,
                "revision": source.revision if source else None,
                "sha": source.sha if source else None,
            }
            for source, model in zip(self.sources, config.models, strict=True)
        ]

    @property
    def folders(self) -> list[Path]:
        """The Hugging Face directories among the sources."""
        return [s.path for s in self.sources if s is not None and is_huggingface(s.path)]


def find_parents(config: MergeConfig) -> Parents:
    """Find every model and check all that can be told wrong before a weight is read.

    Raises:
        InputError: a device, model or text is not there, or the models do not read one text.
        CheckpointError: a directory is no checkpoint, or a damaged one.
    """
    known_device(config.device)
    for key, text in (("calibration", config.calibration), ("evaluation", config.evaluation)):
        if text is not None and text.path is not None and not Path(text.path).is_file():
            raise InputError(f"{key}.path: {text.path} is not a file")
    sources = tuple(find(source.model) if source.model else None for source in config.models)
    language = _language(config, sources) if config.calibration.is_text else None
    for source in sources:
        if source is not None:
            check_source(fetch(source))
    return Parents(sources, language)


def load_parents(config: MergeConfig, parents: Parents) -> list[nn.Module]:
    """Every parent's module in eval mode, as the merge computes with it."""
    dtype = getattr(torch, config.dtype)
    return [
        load_model(
            str(source.path) if source else model.python or "", dtype, config.trust_remote_code
        ).to(config.device)
        for source, model in zip(parents.sources, config.models, strict=True)
    ]


def open_parents(config: MergeConfig, parents: Parents) -> list[Checkpoint] | None:
    """Every parent's checkpoint, no weight is read; None where the merge runs in memory.

    It does where a parent is no Hugging Face directory or its checkpoint cannot be read tensor by
    tensor, and where something asks for whole modules.
    """
    whole = config.parameters.stop_at is not None
    if whole or config.trust_remote_code or len(parents.folders) < len(parents.sources):
        return None
    try:
        dtype = getattr(torch, config.dtype)
        return [open_checkpoint(folder, dtype, config.device) for folder in parents.folders]
    except NeedsMemory:
        return None


def options_of(config: MergeConfig) -> dict[str, Any]:
    """The options of the merge."""
    return {
        **config.parameters.model_dump(),
        "match": config.merge_method,
        "weights": config.weights,
    }


def polish_of(config: MergeConfig) -> Polish | None:
    """How the result is trained; None where it is not."""
    found = config.polish
    return Polish(found.steps, found.learning_rate) if found and found.steps else None


def vocabulary_of(
    language: Language | None, models: Sequence[Any]
) -> tuple[Vocabulary | None, Any]:
    """Which rows of the vocabulary meet, and the merged network's tokenizer.

    Args:
        models: per parent, a transformers model; its configuration gets the ids that are kept.
    """
    if language is None:
        return None, None
    if not language.shared:
        language.adopt_ids([model.config for model in models])
    return language.vocabulary([embedding_rows(model) for model in models])


def calibration_batches(config: MergeConfig, language: Language | None, merged: Any) -> list[Any]:
    """Inputs for all parents, or :class:`Windows` with inputs for each where tokenizers differ.

    Args:
        merged: the merged network's tokenizer.
    """
    calibration = config.calibration
    if language is None:
        return array_batches(calibration, getattr(torch, config.dtype))
    if language.shared:
        base = language.tokenizers[0]
        return token_batches(
            calibration,
            lambda text: base(text, add_special_tokens=False, verbose=False)["input_ids"],
        )
    return _windows(calibration, [*language.tokenizers, merged])


def evaluation_windows(
    config: MergeConfig, language: Language | None, merged: Any
) -> list[Windows]:
    """Held-out windows for every parent and, last, for the merged network; none if not asked for.

    Args:
        merged: the merged network's tokenizer.
    """
    held = config.evaluation
    if held is None or language is None:
        return []
    return _windows(held, [*language.tokenizers, merged])


def _windows(source: TextSource, tokenizers: Sequence[Any]) -> list[Windows]:
    return aligned_windows(
        text_of(source),
        tokenizers,
        tokens=source.tokens,
        sequence_length=source.sequence_length,
        batch_size=source.batch_size or TEXT_BATCH,
        seed=source.seed,
    )


def _language(config: MergeConfig, sources: Sequence[Source | None]) -> Language:
    first = sources[0]
    if first is None or not is_huggingface(first.path):
        raise InputError(
            f"calibration.{'path' if config.calibration.path else 'dataset'}: text needs a Hugging "
            "Face directory as first model"
        )
    # A factory comes without a tokenizer; it is taken to read as the first model does.
    folders = [s.path if s is not None and is_huggingface(s.path) else first.path for s in sources]
    names = [source.model or source.python or "" for source in config.models]
    policy = config.tokenizer.source if config.tokenizer else None
    language = read_language(folders, names, policy, config.trust_remote_code)
    language.check_length("calibration.sequence_length", config.calibration.sequence_length)
    if config.evaluation is not None:
        language.check_length("evaluation.sequence_length", config.evaluation.sequence_length)
        for name, folder in zip(names, folders, strict=True):
            if not is_causal(kind := architecture_of(folder)):
                raise InputError(
                    f"evaluation: {name} is a {kind}, which does not predict the next token"
                )
    return language
