"""Writing so that a reader finds a whole file or none."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from hetmerge.errors import CheckpointError


def replace_file(path: Path, parts: Iterable[bytes | memoryview]) -> None:
    """Write the parts beside, one after the other, then rename."""
    with tempfile.NamedTemporaryFile(
        dir=path.parent, prefix=f".{path.name}.", delete=False
    ) as file:
        try:
            for part in parts:
                file.write(part)
            file.flush()
            os.fsync(file.fileno())
            Path(file.name).chmod(0o644)
            Path(file.name).replace(path)
        except BaseException:
            Path(file.name).unlink(missing_ok=True)
            raise


@contextmanager
def new_directory(path: str | Path) -> Iterator[Path]:
    """A directory that appears under `path` only once the block has ended without an error.

    Raises:
        CheckpointError: `path` exists, or its parent cannot be written.
    """
    path = Path(path)
    check_new(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be written ({error.strerror})") from error
    try:
        yield draft
        draft.chmod(0o755)
        check_new(path)
        draft.rename(path)
    except OSError as error:
        shutil.rmtree(draft, ignore_errors=True)
        raise CheckpointError(f"{path}: cannot be written ({error.strerror or error})") from error
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise


def check_new(path: Path) -> None:
    """Refuse to write over anything."""
    if path.exists():
        raise CheckpointError(f"{path}: exists already; give a directory that does not")
