"""Scores of language models on held-out text that models with other tokenizers can be held to."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hetmerge.alignment import find_stages
from hetmerge.batches import Call
from hetmerge.errors import InputError
from hetmerge.execution import Walker, flat_inputs
from hetmerge.lazy import Checkpoint
from hetmerge.network import Network, release
from hetmerge.weights import Resident
from hetmerge.windows import Windows

CHUNK = 128  # positions whose log-probabilities over the whole vocabulary exist at a time


def is_causal(name: str) -> bool:
    """Whether a transformers class of this name predicts the next token."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    return name in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values()


def score(
    model: nn.Module | Checkpoint, windows: Sequence[Windows], member: int
) -> dict[str, float]:
    """Perplexity per token and bits per byte of a causal language model.

    In each window the tokens behind the first common end count, each given all before it. So models
    with different tokenizers predict the same bytes; their perplexities have different units, their
    bits per byte (sum of -log2 p over the tokens, by UTF-8 bytes of text) do not.

    Args:
        model: a transformers model with a head over its vocabulary, in eval mode; a checkpoint is
            run layer by layer, each weight read once.
        windows: from :func:`hetmerge.windows.aligned_windows`.
        member: which of the windows' models it is.

    Raises:
        InputError: the model's scores are not finite.
    """
    total, tokens = 0.0, 0
    spans = [_spans(batch.shared[member]) for batch in windows]
    ids = [batch.inputs[member]["input_ids"] for batch in windows]
    found = _streamed(model, ids) if isinstance(model, Checkpoint) else _run(model, ids)
    for batch, logits, ends in zip(ids, found, spans, strict=True):
        for row, (first, last) in enumerate(ends):
            total += _surprise(logits[row], batch[row], first, last)
            tokens += last - first
    size = sum(int(batch.bytes.sum()) for batch in windows)
    if not math.isfinite(total):
        name = model.folder if isinstance(model, Checkpoint) else type(model).__name__
        raise InputError(f"evaluation: the scores of {name} are not finite")
    return {"perplexity": math.exp(total / tokens), "bits per byte": total / math.log(2) / size}


def _spans(shared: Tensor) -> list[tuple[int, int]]:
    """Per window, its first and last common end as positions in the model's input."""
    return [(int(row[row >= 0][0]), int(row[row >= 0][-1])) for row in shared]


def _run(model: Any, batches: Sequence[Tensor]) -> Iterator[Sequence[Tensor]]:
    """Logits [L, V] of each row; padding stands behind the text, where nothing looks back from."""
    device = next(model.parameters()).device
    for ids in batches:
        with torch.no_grad():
            yield [model(input_ids=row[None].to(device)).logits[0] for row in ids]


def _streamed(model: Checkpoint, batches: Sequence[Tensor]) -> Iterator[Sequence[Tensor]]:
    """The same from disk: the stream of all windows unit by unit, then the head row by row."""
    device = model.state.device
    calls: list[Call] = [((), {"input_ids": ids.to(device)}) for ids in batches]
    network = Network(model, calls[0], str(model.folder), fold=False)
    walker = network.walk(calls)
    for unit in network.nodes.in_turn(find_stages([network])[0]):
        walker.value(unit.output)
        release([network])
    head = max(network.layers, key=lambda layer: network.nodes.order[layer.node])
    (end,) = network.graph.outputs[:1]
    streams = walker.value(head.source)
    release([network])
    tensors = [name for name in (head.weight, head.bias) if name]
    kept = Resident((name, network.state[name]) for name in tensors)
    for program, stream, call in zip(walker.programs, streams, calls, strict=True):
        found = []
        for row in stream.split(1):
            tail = Walker([program], kept, [flat_inputs(*call)])
            tail.give(head.source, [row])
            found.append(tail.value(end)[0][0])
        yield found


def _surprise(logits: Tensor, ids: Tensor, first: int, last: int) -> float:
    """Sum of -ln p of the tokens behind position `first`, up to `last`, of ids [L]."""
    total = 0.0
    for at in range(first, last, CHUNK):
        part = logits[at : min(at + CHUNK, last)].float()
        wanted = ids[at + 1 : at + 1 + len(part)].to(part.device)
        total += float(F.cross_entropy(part, wanted, reduction="sum"))
    return total
