"""Calibration inputs of the command line: windows of tokens, or rows of one array."""

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
from hetmerge.texts import text_of
from hetmerge.windows import draw, evenly

Encode = Callable[[str], list[int]]
TEXT_BATCH, ARRAY_BATCH = 8, 250


def token_batches(calibration: Calibration, encode: Encode) -> list[dict[str, Tensor]]:
    """Disjoint windows of the tokenised text, drawn at random: dicts of input_ids [B, length].

    Raises:
        InputError: the text cannot be had, or is shorter than a window.
    """
    length = calibration.sequence_length
    ids = torch.tensor(encode(text_of(calibration)), dtype=torch.int64)
    available, wanted = len(ids) // length, -(-calibration.tokens // length)
    if available == 0:
        raise InputError(
            f"{calibration.path or calibration.dataset}: {len(ids)} tokens are fewer than one "
            f"sequence_length of {length}"
        )
    windows = ids[: available * length].view(available, length)
    chosen = windows[draw(available, min(wanted, available), calibration.seed)]
    parts = evenly(len(chosen), calibration.batch_size or TEXT_BATCH)
    return [{"input_ids": chosen[part]} for part in parts]


def array_batches(calibration: Calibration, dtype: torch.dtype) -> list[Tensor]:
    """Rows of the file's one array, drawn at random where `samples` asks for fewer than all."""
    assert calibration.path is not None
    path = Path(calibration.path)
    rows = _read_array(path)
    if rows.dim() < 2 or len(rows) == 0:
        raise InputError(f"{path}: expected one array [N, ...], got shape {list(rows.shape)}")
    if rows.dtype == torch.uint8:
        raise InputError(f"{path}: holds bytes; store the numbers the models take (scaled floats)")
    if calibration.samples is not None and calibration.samples < len(rows):
        rows = rows[draw(len(rows), calibration.samples, calibration.seed)]
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
