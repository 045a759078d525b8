"""The committed block shapes, and which of them is taken."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from hetmerge.kernels import tuning

TABLE = [
    {"dtype": "float32", "size": 100, "config": {"warps": 1}},
    {"dtype": "float32", "size": 10000, "config": {"warps": 2}},
    {"dtype": "any", "size": 1000000, "config": {"warps": 4}},
]


@pytest.fixture
def table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setattr(tuning, "CONFIGS", tmp_path)
    tuning._table.cache_clear()
    path = tmp_path / tuning.file_name("made", "default")
    path.write_text(json.dumps(TABLE))
    yield path
    tuning._table.cache_clear()


@pytest.mark.parametrize(
    ("size", "warps"), [(0, 1), (1, 1), (999, 1), (1001, 2), (99_999, 2), (2_000_000, 4)]
)
def test_nearest_size_as_a_ratio(table: Path, size: int, warps: int) -> None:
    found = tuning.choose("made", torch.float32, size, torch.device("cpu"))
    assert found == {"warps": warps}


def test_a_dtype_without_entries_takes_those_of_any(table: Path) -> None:
    assert tuning.choose("made", torch.float16, 5, torch.device("cpu")) == {"warps": 4}


def test_a_device_with_its_own_table(table: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuning, "_name", lambda device: "Some GPU/2")
    assert tuning.choose("made", torch.float32, 1, torch.device("cpu")) == {"warps": 1}
    own = table.parent / "made,device=Some_GPU_2.json"
    own.write_text(json.dumps([{"dtype": "any", "size": 1, "config": {"warps": 8}}]))
    tuning._table.cache_clear()
    assert tuning.choose("made", torch.float32, 1, torch.device("cpu")) == {"warps": 8}


@pytest.mark.parametrize("op", ["moments", "project", "similarity"])
def test_committed_tables(op: str) -> None:
    paths = sorted(tuning.CONFIGS.glob(f"{op},device=*.json"))
    assert any(path.name == tuning.file_name(op, "default") for path in paths)
    for path in paths:
        entries = json.loads(path.read_text())
        keys = {tuple(entry["config"]) for entry in entries}
        assert len(keys) == 1, f"{path.name}: entries differ in their keys"
        for entry in entries:
            assert entry["config"].get("precision", "ieee") in ("tf32x3", "ieee")
            assert entry["size"] >= 1
        dtypes = {entry["dtype"] for entry in entries}
        assert dtypes == {"any"} or dtypes == {"float32", "half"}
