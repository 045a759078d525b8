"""Windows of one text for several tokenizers, and the positions at which all of them end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hetmerge.errors import InputError

Ints = NDArray[np.int64]
MASSIVE = 10.0


@dataclass(frozen=True)
class Windows:
    """A batch of B windows of text as M models read it.

    Attributes:
        inputs: per model, input_ids and attention_mask, int64 [B, L_m]; padding stands at the end
            and has mask 0. The special tokens that a tokenizer puts around a text are there.
        shared: per model, int64 [B, P]: where in its input the k-th character position stands at
            which a token of every tokenizer ends; -1 behind the last. Never special or padding.
        bytes: int64 [B], UTF-8 bytes of the text between the first and the last such position.
    """

    inputs: tuple[dict[str, Tensor], ...]
    shared: tuple[Tensor, ...]
    bytes: Tensor


def aligned_windows(
    text: str,
    tokenizers: Sequence[Any],
    *,
    tokens: int,
    sequence_length: int,
    batch_size: int,
    seed: int | None,
) -> list[Windows]:
    """Cut a text where tokens of all tokenizers end, and pair the positions in between.

    Every tokenizer reads the whole text once. A window goes from one common end to the last one
    that no tokenizer needs more than `sequence_length` tokens for, its special tokens included.
    Windows are disjoint. Two tokens of different tokenizers that end at the same character have
    read the same text, which is why what the models compute there may be compared.

    Args:
        text: any length.
        tokenizers: transformers tokenizers that know offsets, one per model; equal ones may repeat.
        tokens: windows are drawn until they hold about as many tokens of one model.
        sequence_length: most tokens of a window.
        batch_size: windows per batch.
        seed: of the draw; None takes windows from the start of the text.

    Returns:
        Batches of equal L_m and P, and of nearly equal numbers of windows.

    Raises:
        InputError: the text gives no whole window, or a tokenizer knows no offsets.
    """
    once = {id(tokenizer): _Reading(tokenizer, text) for tokenizer in dict.fromkeys(tokenizers)}
    read = [once[id(tokenizer)] for tokenizer in tokenizers]
    ends = reduce(np.intersect1d, [one.ends for one in read])
    places = [np.concatenate([[-1], one.last_at(ends)]) for one in read]
    rooms = [sequence_length - len(one.before) - len(one.after) for one in read]
    if min(rooms) < 2:
        raise InputError(f"sequence_length: got {sequence_length}; allowed: room for two tokens")
    spans = _spans(places, rooms)
    if not spans:
        counts = " / ".join(f"{len(one.ids):,}" for one in read)
        raise InputError(
            f"{counts} tokens of text are fewer than one sequence_length of {sequence_length}"
        )
    wanted = min(-(-tokens // sequence_length), len(spans))
    chosen = [spans[i] for i in draw(len(spans), wanted, seed).tolist()]
    bounds = np.concatenate([[0], ends])
    size = torch.tensor([len(text[bounds[a + 1] : bounds[b]].encode()) for a, b in chosen])
    inputs = [one.inputs(place, chosen) for one, place in zip(read, places, strict=True)]
    shared = [_shared(one, place, chosen) for one, place in zip(read, places, strict=True)]
    return [
        Windows(
            tuple({name: tensor[part] for name, tensor in found.items()} for found in inputs),
            tuple(found[part] for found in shared),
            size[part],
        )
        for part in evenly(len(chosen), batch_size)
    ]


def draw(count: int, wanted: int, seed: int | None) -> Tensor:
    """`wanted` of `count` indices in random order; the first ones without a seed."""
    if seed is None:
        return torch.arange(count)[:wanted]
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed))[:wanted]


def evenly(count: int, most: int) -> tuple[Tensor, ...]:
    """Indices of `count` samples in batches of at most `most` whose sizes differ by one or none.

    A small last batch would be too few for what calibration estimates from every batch.
    """
    return torch.arange(count).tensor_split(-(-count // most))


def massive(hidden: Tensor, mask: Tensor) -> Tensor:
    """Positions whose activations are outliers, such as the first tokens of many models.

    A position is one if its Euclidean norm is above ten times the median norm of the positions that
    count. Sun et al. (arXiv 2402.17762) call an activation massive if it is above 100 and about a
    thousand times the median magnitude of its hidden state; one such feature among 4,096 that are
    otherwise normally distributed makes their norm 10.6 times as large.

    Args:
        hidden: [B, L, D] floating point.
        mask: [B, L], 0 at padding.

    Returns:
        bool [B, L], False at padding.
    """
    norms = hidden.float().norm(dim=-1)
    found = mask.bool()
    if found.any():
        found = found & (norms > MASSIVE * norms[found].median())
    return found


class _Reading:
    """A text as one tokenizer reads it: ids, and the character behind each token."""

    def __init__(self, tokenizer: Any, text: str) -> None:
        if not getattr(tokenizer, "is_fast", False):
            raise InputError(
                f"tokenizer {type(tokenizer).__name__}: knows no offsets of its tokens in the text "
                "(it has no tokenizer.json), so its windows cannot be aligned with others'"
            )
        found = tokenizer(
            text,
            add_special_tokens=False,
            return_offsets_mapping=True,
            return_attention_mask=False,
            truncation=False,
            padding=False,
            verbose=False,
        )
        self.ids: Ints = np.array(found["input_ids"], np.int64)
        stops = np.array(found["offset_mapping"], np.int64).reshape(-1, 2)[:, 1]
        self._stops: Ints = np.maximum.accumulate(stops)
        self.ends: Ints = np.unique(self._stops[self._stops > 0])
        self.before, self.after = _around(tokenizer)
        pad = tokenizer.pad_token_id
        self._pad = 0 if pad is None else int(pad)

    def last_at(self, ends: Ints) -> Ints:
        """Of tokens that end at one character, such as the bytes of a letter, the last."""
        return np.searchsorted(self._stops, ends, side="right") - 1

    def inputs(self, place: Ints, spans: Sequence[tuple[int, int]]) -> dict[str, Tensor]:
        """input_ids and attention_mask [windows, L]."""
        rows = [
            [*self.before, *self.ids[place[a] + 1 : place[b] + 1].tolist(), *self.after]
            for a, b in spans
        ]
        length = max(map(len, rows))
        ids = torch.full((len(rows), length), self._pad)
        mask = torch.zeros(len(rows), length, dtype=torch.int64)
        for i, row in enumerate(rows):
            ids[i, : len(row)] = torch.tensor(row)
            mask[i, : len(row)] = 1
        return {"input_ids": ids, "attention_mask": mask}


def _around(tokenizer: Any) -> tuple[list[int], list[int]]:
    """The special tokens that a tokenizer puts before and behind a text."""
    whole = tokenizer("a", return_special_tokens_mask=True)
    ids, special = whole["input_ids"], whole["special_tokens_mask"]
    plain = len(tokenizer("a", add_special_tokens=False)["input_ids"])
    first = special.index(0) if 0 in special else len(ids) - plain
    return ids[:first], ids[first + plain :]


def _spans(places: Sequence[Ints], rooms: Sequence[int]) -> list[tuple[int, int]]:
    """Windows as pairs of indices of common ends; of a remainder at the end there is none."""
    found = []
    start, last = 0, len(places[0]) - 1
    while start < last:
        stop = min(
            int(np.searchsorted(place, place[start] + room, side="right")) - 1
            for place, room in zip(places, rooms, strict=True)
        )
        used = [place[stop] - place[start] for place in places]
        if stop == last and all(n < room for n, room in zip(used, rooms, strict=True)):
            break
        if stop - start >= 2:
            found.append((start, stop))
        start = max(stop, start + 1)
    return found


def _shared(read: _Reading, place: Ints, spans: Sequence[tuple[int, int]]) -> Tensor:
    """int64 [windows, P]: the common ends of a window as positions in the model's input."""
    rows = [len(read.before) + place[a + 1 : b + 1] - (place[a] + 1) for a, b in spans]
    shared = torch.full((len(rows), max(map(len, rows))), -1)
    for i, row in enumerate(rows):
        shared[i, : len(row)] = torch.from_numpy(row)
    return shared
