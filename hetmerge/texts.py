"""Text for calibration and evaluation: a file, or a data set of the hub."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from hetmerge.config import TextSource
from hetmerge.errors import InputError

CHARACTERS = 32  # read per wanted token at most: a few times what a token of any script has
STRETCHES = 64


def text_of(source: TextSource) -> str:
    """The text that a section of the configuration names; of a long one, stretches from all over.

    Raises:
        InputError: it cannot be read, or the data set cannot be had.
    """
    wanted = CHARACTERS * source.tokens
    if source.dataset is not None:
        return read_dataset(source, wanted)
    assert source.path is not None
    return excerpt(read_text(Path(source.path)), wanted, source.seed)


def read_text(path: Path) -> str:
    """The whole of a .txt file, or the "text" fields of a .jsonl file, a blank line between."""
    try:
        raw = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read as UTF-8 text ({error})") from error
    if path.suffix != ".jsonl":
        return raw
    texts = []
    for number, line in enumerate(raw.split("\n"), 1):
        if not line.strip():
            continue
        try:
            text = json.loads(line)["text"]
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f'{path}:{number}: expected a JSON object with "text"') from error
        if not isinstance(text, str):
            raise InputError(f'{path}:{number}: "text" is {type(text).__name__}, not a string')
        texts.append(text)
    return "\n\n".join(texts)


def excerpt(text: str, characters: int, seed: int) -> str:
    """Stretches of a text, spread over all of it, of so many characters in all; short ones whole.

    Each begins behind a line or word, and a blank line stands between them.
    """
    if len(text) <= characters:
        return text
    cell, length = len(text) // STRETCHES, max(characters // STRETCHES, 1)
    random = torch.Generator().manual_seed(seed)
    starts = torch.randint(0, max(cell - length, 1), (STRETCHES,), generator=random).tolist()
    found = []
    for k, offset in enumerate(starts):
        piece = text[k * cell + offset : k * cell + offset + length]
        cuts = [at for at in (piece.find("\n"), piece.find(" ")) if at >= 0]
        found.append(piece[cuts[0] + 1 :] if cuts else piece)
    return "\n\n".join(found)


def read_dataset(source: TextSource, characters: int) -> str:
    """Documents of a data set of the hub, streamed in random order, a blank line between.

    Raises:
        InputError: the datasets package is missing, or the data set, split or column is.
    """
    name = source.dataset
    try:
        import datasets
    except ImportError as error:
        raise InputError(
            f"dataset {name!r}: needs the datasets package (pip install datasets), or give a "
            ".txt or .jsonl file as path"
        ) from error
    try:
        rows: Any = datasets.load_dataset(name, source.subset, split=source.split, streaming=True)
        texts, length = [], 0
        for row in rows.shuffle(seed=source.seed, buffer_size=1000):
            texts.append(_column(row, source))
            length += len(texts[-1])
            if length >= characters:
                break
    except InputError:
        raise
    except Exception as error:  # whatever the library and the network raise
        reason = " ".join(str(error).split())[:200]
        raise InputError(
            f"dataset {name!r} (split {source.split!r}): cannot be read from the hub or its cache "
            f"({type(error).__name__}: {reason})"
        ) from error
    return "\n\n".join(texts)


def _column(row: Mapping[str, Any], source: TextSource) -> str:
    name, column = source.dataset, source.column
    if column not in row:
        shown = ", ".join(row)
        raise InputError(f"dataset {name!r}: has no column {column!r}; columns are {shown}")
    if not isinstance(row[column], str):
        kind = type(row[column]).__name__
        raise InputError(f"dataset {name!r}: column {column!r} holds {kind}, not text")
    return str(row[column])
