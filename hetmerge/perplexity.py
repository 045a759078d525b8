"""Scores of language models on held-out text that models with other tokenizers can be held to."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hetmerge.errors import InputError
from hetmerge.windows import Windows

CHUNK = 128  # positions whose log-probabilities over the whole vocabulary exist at a time


def is_causal(name: str) -> bool:
    """Whether a transformers class of this name predicts the next token."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    return name in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values()


def score(model: nn.Module, windows: Sequence[Windows], member: int) -> dict[str, float]:
    """Perplexity per token and bits per byte of a causal language model.

    In each window the tokens behind the first common end count, each given all before it. So models
    with different tokenizers predict the same bytes; their perplexities have different units, their
    bits per byte (sum of -log2 p over the tokens, by UTF-8 bytes of text) do not.

    Args:
        model: a transformers model with a head over its vocabulary, in eval mode.
        windows: from :func:`hetmerge.windows.aligned_windows`.
        member: which of the windows' models it is.

    Raises:
        InputError: the model's scores are not finite.
    """
    total, tokens, size = 0.0, 0, 0
    for batch in windows:
        inputs, shared = batch.inputs[member], batch.shared[member]
        for row in range(len(shared)):
            at = shared[row][shared[row] >= 0]
            first, last = int(at[0]), int(at[-1])
            ids = inputs["input_ids"][row : row + 1, : last + 1]
            total += _surprise(model, ids, first)
            tokens += last - first
        size += int(batch.bytes.sum())
    if not math.isfinite(total):
        raise InputError(f"evaluation: the scores of {type(model).__name__} are not finite")
    return {"perplexity": math.exp(total / tokens), "bits per byte": total / math.log(2) / size}


def _surprise(model: Any, ids: Tensor, first: int) -> float:
    """Sum of -ln p of the tokens behind position `first` of ids [1, L]."""
    ids = ids.to(next(model.parameters()).device)
    with torch.no_grad():
        logits = model(input_ids=ids).logits[0]
    total = 0.0
    for at in range(first, ids.shape[1] - 1, CHUNK):
        part = logits[at : min(at + CHUNK, ids.shape[1] - 1)].float()
        total += float(F.cross_entropy(part, ids[0, at + 1 : at + 1 + len(part)], reduction="sum"))
    return total
