"""What the tokens of a tokenizer stand for, in one form for every kind of tokenizer."""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from hetmerge.errors import InputError

ROLES = ("eos", "bos", "pad", "unk", "mask", "cls", "sep")
Name = tuple[str, bytes]
TEXT, BYTE, SPECIAL = "text", "byte", "special"
_FALLBACK = re.compile(r"<0x([0-9A-F]{2})>")
_SPACE = "▁"


@dataclass(frozen=True)
class Tokens:
    """The tokens of one tokenizer.

    Attributes:
        ids: name -> id. A name is a kind and bytes: ("text", what the token adds to the text, a
            leading space included), ("special", its literal form), ("byte", one byte that another
            token already stands for), ("text+", what another token already stands for).
        roles: eos, bos, pad, unk, mask, cls, sep -> id, those that there are.
        literals: every token as the tokenizer itself writes it.
    """

    ids: Mapping[Name, int]
    roles: Mapping[str, int]
    literals: frozenset[str]


def tokens_of(tokenizer: Any) -> Tokens:
    """Read the tokens of a transformers tokenizer.

    Byte-level BPE writes bytes as letters (a space is `Ġ`), sentencepiece writes a space as `▁` and
    single bytes as `<0x0A>`, WordPiece marks what continues a word with `##`; all become bytes. A
    WordPiece token that starts a word gets the space before it that WordPiece leaves out;
    punctuation and CJK characters, which it always cuts off, do not.

    Raises:
        InputError: the tokenizer does not come from the tokenizers library.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise InputError(
            f"tokenizer {type(tokenizer).__name__}: not backed by the tokenizers library "
            "(tokenizer.json), so its tokens cannot be aligned with others"
        )
    read = _Reader(json.loads(backend.to_str()))
    added = tokenizer.added_tokens_decoder
    special = {i for i, token in added.items() if token.special} | set(tokenizer.all_special_ids)
    vocabulary = tokenizer.get_vocab()
    ids: dict[Name, int] = {}
    late: list[tuple[bytes, int]] = []
    for text, i in sorted(vocabulary.items(), key=lambda item: item[1]):
        fallback = read.single_byte(text)
        if i in special:
            ids[SPECIAL, text.encode()] = i
        elif i in added:
            _add(ids, text.encode(), i)
        elif fallback is not None:
            late.append((fallback, i))
        else:
            _add(ids, read.content(text), i)
    for value, i in late:
        ids[(BYTE if (TEXT, value) in ids else TEXT, value)] = i
    roles = {role: getattr(tokenizer, f"{role}_token_id", None) for role in ROLES}
    return Tokens(
        ids, {role: i for role, i in roles.items() if i is not None}, frozenset(vocabulary)
    )


def counterparts(mine: Tokens, theirs: Tokens) -> dict[int, int]:
    """My id -> their id of the token that stands for the same.

    Special tokens of one literal form are the same; of those left, tokens of one role are.
    """
    found = {i: theirs.ids[name] for name, i in mine.ids.items() if name in theirs.ids}
    taken = set(found.values())
    for role in ROLES:
        i, other = mine.roles.get(role), theirs.roles.get(role)
        if i is not None and other is not None and i not in found and other not in taken:
            found[i] = other
            taken.add(other)
    return found


def same_tokens(a: Tokens, b: Tokens) -> bool:
    """Both write every token alike and give it the same id."""
    return a.ids == b.ids and a.literals == b.literals


def _add(ids: dict[Name, int], content: bytes, i: int) -> None:
    """The first token of a content has its name; later ones are told apart by their kind."""
    kind = TEXT
    while (kind, content) in ids:
        kind += "+"
    ids[kind, content] = i


class _Reader:
    """From a tokenizer's own spelling of tokens to bytes."""

    def __init__(self, description: Mapping[str, Any]) -> None:
        model = description["model"]
        parts = [description.get(k) for k in ("pre_tokenizer", "decoder", "normalizer")]
        kinds = {kind for part in parts for kind in _kinds(part)}
        spaced = any(_SPACE in json.dumps(part, ensure_ascii=False) for part in parts)
        self._bytes = _byte_letters() if "ByteLevel" in kinds else {}
        self._spaced = spaced and not self._bytes
        self._pieces = model.get("continuing_subword_prefix") if _is_wordpiece(model) else None
        self._fallback = bool(model.get("byte_fallback")) or "ByteFallback" in kinds

    def single_byte(self, token: str) -> bytes | None:
        """The byte of a fallback token such as <0x0A>."""
        found = _FALLBACK.fullmatch(token) if self._fallback else None
        return bytes([int(found[1], 16)]) if found else None

    def content(self, token: str) -> bytes:
        """What an ordinary token adds to the text."""
        if self._bytes:
            return b"".join(self._bytes.get(letter, letter.encode()) for letter in token)
        if self._spaced:
            return token.replace(_SPACE, " ").encode()
        if self._pieces is None:
            return token.encode()
        if token.startswith(self._pieces) and token != self._pieces:
            return token.removeprefix(self._pieces).encode()
        alone = len(token) == 1 and _stands_alone(token)
        return (token if alone else f" {token}").encode()


def _is_wordpiece(model: Mapping[str, Any]) -> bool:
    return model.get("type") == "WordPiece"


def _kinds(part: Any) -> Iterator[str]:
    """The types of a tokenizer's part and of the parts inside it."""
    if isinstance(part, Mapping):
        if isinstance(part.get("type"), str):
            yield part["type"]
        for inner in part.values():
            yield from _kinds(inner)
    elif isinstance(part, list):
        for inner in part:
            yield from _kinds(inner)


def _byte_letters() -> dict[str, bytes]:
    """The letter that byte-level BPE writes for each byte: printable ones stand for themselves."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [value for value in range(256) if value not in plain]
    letters = {chr(value): bytes([value]) for value in plain}
    return letters | {chr(256 + k): bytes([value]) for k, value in enumerate(others)}


def _stands_alone(letter: str) -> bool:
    """WordPiece's pre-tokenizer cuts it off on both sides: punctuation, or a CJK character."""
    ascii_symbol = letter.isascii() and not letter.isalnum()
    return (
        ascii_symbol
        or unicodedata.category(letter).startswith("P")
        or unicodedata.name(letter, "").startswith("CJK ")
    )
