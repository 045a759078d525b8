"""Bytes of two kinds of text, each in three parts: to train on, to calibrate on, to judge by."""

from __future__ import annotations

import os
import sysconfig
import zlib
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

DOMAINS = ("english", "code")
PARTS = ("train", "calibration", "test")
LENGTH = 128  # bytes that a model sees at once
MOST = 3_000_000  # bytes of code that are trained on


@cache
def text(domain: str, part: str) -> Tensor:
    """All bytes of one part of one domain, uint8 [n].

    Of the plays every tenth stretch of 10,000 bytes is calibration and the one behind it test; of
    Python's standard library, by their names, every tenth file.
    """
    pieces = _plays() if domain == "english" else _modules()
    wanted = {"calibration": {0}, "test": {1}, "train": set(range(2, 10))}[part]
    joined = b"".join(piece for turn, piece in pieces if turn in wanted)
    return torch.frombuffer(bytearray(joined[:MOST]), dtype=torch.uint8)


def _plays() -> list[tuple[int, bytes]]:
    folder = os.environ.get("HETMERGE_DATA")
    if not folder:
        raise SystemExit(
            "HETMERGE_DATA is not set; it names the folder with text/tinyshakespeare.txt"
        )
    raw = (Path(folder) / "text" / "tinyshakespeare.txt").read_bytes()
    starts = range(0, len(raw), 10_000)
    return [(i % 10, raw[at : at + 10_000]) for i, at in enumerate(starts)]


def _modules() -> list[tuple[int, bytes]]:
    root = Path(sysconfig.get_paths()["stdlib"])
    left_out = {"site-packages", "test", "tests", "idlelib", "lib2to3", "encodings"}
    files = [f for f in root.rglob("*.py") if not left_out & set(f.relative_to(root).parts)]
    names = sorted((zlib.crc32(str(f.relative_to(root)).encode()), f) for f in files)
    return [(crc % 10, f.read_bytes()) for crc, f in names]


def windows(domain: str, part: str, count: int) -> Tensor:
    """The part's evenly spread stretches of LENGTH + 1 bytes, int64 [count, LENGTH + 1]."""
    raw = text(domain, part)
    starts = torch.linspace(0, len(raw) - LENGTH - 1, count).long()
    return torch.stack([raw[at : at + LENGTH + 1] for at in starts.tolist()]).long()


def draw(domains: tuple[str, ...], count: int, generator: torch.Generator) -> Tensor:
    """Random stretches to train on, as many of each domain, int64 [count, LENGTH + 1]."""
    found = []
    for domain in domains:
        raw = text(domain, "train")
        starts = torch.randint(len(raw) - LENGTH, (count // len(domains),), generator=generator)
        found.append(torch.stack([raw[at : at + LENGTH + 1] for at in starts.tolist()]))
    return torch.cat(found).long()
