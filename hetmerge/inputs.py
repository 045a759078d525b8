"""Calibration inputs of the command line: windows of tokens, or rows of one array."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from hetmerge.config import Calibration
from hetmerge.errors import InputError

Encode = Callable[[str], list[int]]
TEXT_BATCH, ARRAY_BATCH = 8, 250


def read_text(path: Path) -> str:
    """The whole of a .txt file, or the "text" fields of a .jsonl file, a blank line between."""
    try:
        raw = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read as UTF-8 text ({error})") from error
    if path.suffix != ".jsonl":
        return raw
    texts = []
    for number, line in enumerate(raw.splitlines(), 1):
        if not line.strip():
            continue
        try:
            texts.append(json.loads(line)["text"])
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f'{path}:{number}: expected a JSON object with "text"') from error
    return "\n\n".join(texts)


def token_batches(calibration: Calibration, encode: Encode) -> list[dict[str, Tensor]]:
    """Disjoint windows of the tokenised text, drawn at random: dicts of input_ids [B, length]."""
    path, length = Path(calibration.path), calibration.sequence_length
    ids = torch.tensor(encode(read_text(path)), dtype=torch.int64)
    available, wanted = len(ids) // length, -(-calibration.tokens // length)
    if available == 0:
        raise InputError(
            f"{path}: {len(ids)} tokens are fewer than one sequence_length of {length}"
        )
    windows = ids[: available * length].view(available, length)
    chosen = windows[_draw(available, min(wanted, available), calibration.seed)]
    return [{"input_ids": part} for part in chosen.split(calibration.batch_size or TEXT_BATCH)]


def array_batches(calibration: Calibration, dtype: torch.dtype) -> list[Tensor]:
    """Rows of the file's one array, drawn at random where `samples` asks for fewer than all."""
    path = Path(calibration.path)
    rows = _read_array(path)
    if rows.dim() < 2 or len(rows) == 0:
        raise InputError(f"{path}: expected one array [N, ...], got shape {list(rows.shape)}")
    if rows.dtype == torch.uint8:
        raise InputError(f"{path}: holds bytes; store the numbers the models take (scaled floats)")
    if calibration.samples is not None and calibration.samples < len(rows):
        rows = rows[_draw(len(rows), calibration.samples, calibration.seed)]
    rows = rows.to(dtype) if rows.is_floating_point() else rows.long()
    return list(rows.split(calibration.batch_size or ARRAY_BATCH))


def _read_array(path: Path) -> Tensor:
    try:
        if path.suffix == ".safetensors":
            rows: Tensor = _only(load_file(path), path)
            return rows
        with path.open("rb") as file:
            loaded: Any = np.load(file, allow_pickle=False)
            if path.suffix == ".npz":
                loaded = _only({name: loaded[name] for name in loaded.files}, path)
        return torch.from_numpy(loaded)
    except (OSError, ValueError, TypeError, EOFError, BadZipFile, SafetensorError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path}: holds no readable array ({error})") from error


def _only(arrays: dict[str, Any], path: Path) -> Any:
    if len(arrays) != 1:
        raise InputError(f"{path}: expected one array, got {sorted(arrays)}")
    return next(iter(arrays.values()))


def _draw(count: int, wanted: int, seed: int) -> Tensor:
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed))[:wanted]
