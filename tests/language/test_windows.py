"""Windows for several tokenizers: what ends where, judged by the bytes that tokens stand for."""

import unicodedata
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from language_models import TEXT, byte_level, unigram, wordpiece

from hetmerge.errors import InputError
from hetmerge.tokens import tokens_of
from hetmerge.windows import Windows, aligned_windows, massive

MAKE = {"byte level": byte_level, "unigram": unigram, "wordpiece": wordpiece}
LONG = TEXT * 6


def cut(tokenizers: Sequence[Any], text: str = LONG, **changes: Any) -> list[Windows]:
    settings = {"tokens": 400, "sequence_length": 40, "batch_size": 4, "seed": 0, **changes}
    return aligned_windows(text, tokenizers, **settings)


def spelt(tokenizer: Any, ids: list[int]) -> str:
    names = {i: name for name, i in tokens_of(tokenizer).ids.items()}
    return b"".join(names[i][1] for i in ids).decode(errors="replace")


def plain(text: str) -> str:
    """Without what the kinds lose or add: case, accents, spaces."""
    found = unicodedata.normalize("NFD", text.lower())
    return "".join(c for c in found if unicodedata.category(c) != "Mn" and not c.isspace())


@pytest.mark.parametrize(
    "kinds", [("byte level", "unigram"), ("wordpiece", "byte level"), tuple(MAKE)]
)
def test_between_common_ends_all_have_read_the_same(kinds: tuple[str, ...]) -> None:
    """Without [UNK], whose text WordPiece does not tell."""
    tokenizers = [wordpiece(400) if kind == "wordpiece" else MAKE[kind]() for kind in kinds]
    compared = 0
    for batch in cut(tokenizers):
        for row in range(len(batch.bytes)):
            pieces = []
            for tokenizer, inputs, shared in zip(
                tokenizers, batch.inputs, batch.shared, strict=True
            ):
                at = [i for i in shared[row].tolist() if i >= 0]
                ids = inputs["input_ids"][row].tolist()
                unknown = tokenizer.unk_token_id
                runs = [ids[a + 1 : b + 1] for a, b in zip(at, at[1:], strict=False)]
                pieces.append([None if unknown in run else spelt(tokenizer, run) for run in runs])
            for group in zip(*pieces, strict=True):
                known = {plain(text) for text in group if text is not None}
                assert len(known) <= 1
                compared += len(known)
    assert compared > 100


def test_no_common_end_is_missed() -> None:
    """Of two kinds that lose nothing: wherever, and only where, both have the same bytes."""
    tokenizers = [byte_level(), unigram()]
    text = LONG[:300].replace("\n", " ").rstrip()
    ends = []
    for tokenizer in tokenizers:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        names = {i: name for name, i in tokens_of(tokenizer).ids.items()}
        sizes = torch.tensor([len(names[i][1]) for i in ids]).cumsum(0)
        ends.append(sizes - int(tokenizer is tokenizers[1]))  # sentencepiece puts a space in front
    # Ends within a character are no ends of text.
    whole = {len(text[:k].encode()) for k in range(1, len(text) + 1)}
    common = set(ends[0].tolist()) & set(ends[1].tolist()) & whole
    length = max(len(tokenizer(text)["input_ids"]) for tokenizer in tokenizers)
    (batch,) = cut(tokenizers, text, sequence_length=length, tokens=1, seed=None)
    assert len(batch.shared[0][0]) == len(common)


def test_special_tokens_are_there_but_not_shared() -> None:
    tokenizers = [unigram(), wordpiece()]
    for batch in cut(tokenizers):
        for tokenizer, inputs, shared in zip(tokenizers, batch.inputs, batch.shared, strict=True):
            ids, mask = inputs["input_ids"], inputs["attention_mask"]
            first = tokenizer.bos_token_id if tokenizer is tokenizers[0] else 2
            assert (ids[:, 0] == first).all()
            assert (ids[mask == 0] == tokenizer.pad_token_id).all()
            assert (mask.diff(dim=1) <= 0).all()
            special = torch.tensor([first, 3]) if first == 2 else torch.tensor([first])
            for row, at in zip(ids, shared, strict=True):
                assert not torch.isin(row[at[at >= 0]], special).any()
                assert at.max() < len(row)
            assert (mask.gather(1, shared.clamp_min(0)) == 1).all()
            if first == 2:
                assert (ids.gather(1, mask.sum(1, keepdim=True) - 1) == 3).all()
        counts = [(shared >= 0).sum(1) for shared in batch.shared]
        assert torch.equal(*counts)
        assert (batch.shared[0].diff(dim=1)[batch.shared[0][:, 1:] >= 0] > 0).all()


def test_no_window_is_longer_than_asked_and_one_parent_fills_each() -> None:
    tokenizers = [MAKE[kind]() for kind in MAKE]
    batches = cut(tokenizers)
    assert [len(batch.bytes) for batch in batches] == [4, 3, 3]
    lengths = torch.stack(
        [
            torch.cat([batch.inputs[m]["attention_mask"].sum(1) for batch in batches])
            for m in range(3)
        ]
    )
    assert lengths.max() <= 40
    assert (lengths.max(0).values >= 34).all()  # what is left is shorter than a word
    shapes = {batch.inputs[0]["input_ids"].shape[1] for batch in batches}
    assert len(shapes) == 1


def test_one_tokenizer_gives_whole_windows_of_its_text() -> None:
    tokenizer = byte_level()
    ids = torch.tensor(tokenizer(LONG)["input_ids"])
    batches = cut([tokenizer], seed=None, tokens=80, sequence_length=16)
    found = torch.cat([batch.inputs[0]["input_ids"] for batch in batches])
    # A window may not end within a letter of several tokens, so some are shorter by one or two.
    mask = torch.cat([batch.inputs[0]["attention_mask"] for batch in batches])
    assert torch.equal(found[mask.bool()], ids[: mask.sum()])
    assert (mask.sum(1) >= 14).all()
    assert len(found) == 5


def test_windows_are_drawn_by_the_seed() -> None:
    tokenizers = [byte_level(), unigram()]
    first, again, other = (
        torch.cat([b.inputs[0]["input_ids"] for b in cut(tokenizers, tokens=200, seed=seed)])
        for seed in (1, 1, 2)
    )
    assert torch.equal(first, again)
    assert first.shape != other.shape or not torch.equal(first, other)


def test_bytes_are_those_between_the_outer_ends() -> None:
    tokenizer = byte_level()
    names = {i: name for name, i in tokens_of(tokenizer).ids.items()}
    for batch in cut([tokenizer, unigram()]):
        for row, at, size in zip(
            batch.inputs[0]["input_ids"].tolist(), batch.shared[0], batch.bytes, strict=True
        ):
            places = at[at >= 0].tolist()
            run = row[places[0] + 1 : places[-1] + 1]
            assert size == sum(len(names[i][1]) for i in run)


@pytest.mark.parametrize(
    ("text", "length", "expected"),
    [
        ("", 40, "0 / 0 tokens of text are fewer than one sequence_length of 40"),
        ("the fox", 40, "tokens of text are fewer than one sequence_length of 40"),
        (LONG, 2, "sequence_length: got 2; allowed: room for two tokens"),
    ],
)
def test_texts_that_give_no_window(text: str, length: int, expected: str) -> None:
    with pytest.raises(InputError, match=expected):
        cut([unigram(), byte_level()], text, sequence_length=length)


def test_stretches_without_a_common_end_are_passed_over() -> None:
    word = "zoo" * 60  # [UNK] for WordPiece, one token over 180 characters
    text = (f"the fox jumps over the lazy dog {word} ") * 4 + TEXT
    batches = cut([byte_level(), wordpiece()], text, sequence_length=16, tokens=2000)
    assert all((batch.inputs[0]["attention_mask"].sum(1) <= 16).all() for batch in batches)


def test_massive_positions() -> None:
    random = torch.Generator().manual_seed(0)
    hidden = torch.randn(3, 20, 64, generator=random)
    mask = torch.ones(3, 20, dtype=torch.int64)
    mask[2, 15:] = 0
    assert not massive(hidden, mask).any()
    hidden[:, 0, 5] = 1000.0
    hidden[2, 17, 5] = 1000.0  # padding
    hidden[1, 4] *= 9.0
    assert massive(hidden, mask).nonzero().tolist() == [[0, 0], [1, 0], [2, 0]]
    assert not massive(hidden, torch.zeros_like(mask)).any()
    assert massive(hidden.bfloat16(), mask).sum() == 3
