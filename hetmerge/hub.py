"""Where a named model is: a local directory, or a snapshot of the Hugging Face hub in its cache."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hetmerge.errors import CheckpointError, InputError
from hetmerge.shards import INDEX, WHOLE, index_of

HUB_ID = re.compile(r"(?P<id>[A-Za-z0-9_][\w.-]*/[\w.-]+)(@(?P<revision>[^@\s]+))?")
ALONE = re.compile(r"(?P<id>[A-Za-z0-9_][\w.-]*)@(?P<revision>[^@\s]+)")  # such as gpt2@main
SMALL = ["*.json", "tokenizer*", "*.model", "*.txt", "*.jinja", "*.py"]


@dataclass(frozen=True)
class Source:
    """A model as it was named, and the directory it stands for.

    Attributes:
        name: as given, without the revision.
        path: the directory.
        revision: what was asked for after `@`, None for a local directory or the hub's default.
        sha: the hub's commit; None for a local directory.
    """

    name: str
    path: Path
    revision: str | None = None
    sha: str | None = None


def find(name: str) -> Source:
    """The directory of a model; of a hub model its small files, such as configuration and index.

    Args:
        name: a directory, which goes first, or a hub id `org/name` or `org/name@revision`.

    Raises:
        InputError: neither is there, or the hub cannot be reached and its cache lacks the model.
    """
    if Path(name).is_dir():
        return Source(name, Path(name))
    found = HUB_ID.fullmatch(name) or ALONE.fullmatch(name)
    if found is None:
        raise InputError(f"{name}: no such directory (and no hub id: org/name[@revision])")
    path = _snapshot(found["id"], found["revision"], SMALL)
    # The cache names a snapshot's folder after its commit.
    return Source(found["id"], path, found["revision"], path.name)


def fetch(source: Source) -> Path:
    """The source's directory with its shards in it; nothing is fetched for a local one.

    Raises:
        InputError: the hub cannot be reached and its cache lacks them.
        CheckpointError: the hub has no safetensors of this model.
    """
    if source.sha is None:
        return source.path
    whole = _snapshot(source.name, source.sha, [WHOLE])
    if not (whole / WHOLE).is_file() and (source.path / INDEX).is_file():
        _snapshot(source.name, source.sha, sorted(set(index_of(source.path).values())))
    elif not (whole / WHOLE).is_file():
        raise CheckpointError(
            f"{source.name}: the hub has neither {WHOLE} nor {INDEX} of it; pickles "
            "(pytorch_model.bin) are not read, as they can run code when opened: convert the model "
            "first by loading it once with transformers where you trust it, then "
            "model.save_pretrained(new_folder)"
        )
    return source.path


def _snapshot(name: str, revision: str | None, patterns: Sequence[str]) -> Path:
    shown = f"{name}@{revision}" if revision else name
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import (
            GatedRepoError,
            HFValidationError,
            RepositoryNotFoundError,
            RevisionNotFoundError,
        )
    except ImportError as error:
        raise InputError(
            f"{shown}: no such directory; a hub id needs huggingface_hub: install hetmerge[hf]"
        ) from error
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=list(patterns)))
    except GatedRepoError as error:
        raise InputError(
            f"{shown}: the hub grants access on request; log in there first"
        ) from error
    except RevisionNotFoundError as error:
        raise InputError(f"{name}: has no revision {revision!r} on the hub") from error
    except (RepositoryNotFoundError, HFValidationError) as error:
        raise InputError(f"{shown}: no such directory, and the hub has no such model") from error
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:160]
        raise InputError(
            f"{shown}: no such directory, and it cannot be had from the hub: the cache lacks it or "
            f"some of its files, and the hub cannot be reached ({reason})"
        ) from error
