"""Text from files and data sets; the datasets package is a stand-in, as nothing reaches the hub."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from hetmerge.config import Calibration
from hetmerge.errors import InputError
from hetmerge.texts import STRETCHES, excerpt, read_text, text_of


class Rows:
    """What a streamed data set is: rows, and a shuffle."""

    def __init__(self, rows: list[dict[str, Any]]) -> None:
        self.rows, self.seen = rows, 0

    def shuffle(self, seed: int, buffer_size: int) -> "Rows":
        assert buffer_size > 0
        return Rows(self.rows[seed:] + self.rows[:seed])

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter(self.rows)


def stand_in(monkeypatch: pytest.MonkeyPatch, load: Any) -> None:
    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load))


def test_documents_of_a_data_set_until_there_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def load(name: str, subset: str | None, *, split: str, streaming: bool) -> Rows:
        asked.append((name, subset, split, streaming))
        return Rows([{"body": f"document {k} " * 8} for k in range(50)])

    stand_in(monkeypatch, load)
    source = Calibration(
        dataset="org/data", subset="en", split="test", column="body", tokens=10, seed=3
    )
    text = text_of(source)
    assert asked == [("org/data", "en", "test", True)]
    assert text.startswith("document 3 document 3")
    assert text.count("\n\n") == 3
    assert len(text) >= 320


def test_data_sets_that_cannot_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_: object, **__: object) -> Rows:
        raise ConnectionError("no route\nto host")

    source = Calibration(dataset="org/data")
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(InputError, match="'org/data': needs the datasets package"):
        text_of(source)
    stand_in(monkeypatch, offline)
    with pytest.raises(InputError, match=r"split 'train'\): cannot be read .*no route to host"):
        text_of(source)
    stand_in(monkeypatch, lambda *_, **__: Rows([{"body": "a", "id": 1}]))
    with pytest.raises(InputError, match="has no column 'text'; columns are body, id"):
        text_of(source)
    stand_in(monkeypatch, lambda *_, **__: Rows([{"text": 3}]))
    with pytest.raises(InputError, match="column 'text' holds int, not text"):
        text_of(source)
    stand_in(monkeypatch, lambda *_, **__: Rows([]))
    assert text_of(source) == ""


def test_long_texts_are_read_in_stretches_from_all_over() -> None:
    words = [f"word{k:05d}" for k in range(20000)]
    text = " ".join(words)
    found = excerpt(text, 12800, seed=1)
    assert len(found) <= 12800 + 2 * STRETCHES
    assert len(found) > 0.9 * 12800
    kept = found.replace("\n\n", " ").split()
    numbers = [int(word[4:9]) for word in kept if len(word) == 9]
    assert numbers == sorted(numbers)
    assert min(numbers) < 1000
    assert max(numbers) > 19000
    assert excerpt(text, 12800, seed=1) == found != excerpt(text, 12800, seed=2)
    assert excerpt("short", 12800, seed=1) == "short"
    assert excerpt("x" * 1000, 100, seed=0).replace("\n", "") == "x" * STRETCHES


def test_lines_of_jsonl_may_hold_any_text(tmp_path: Path) -> None:
    path = tmp_path / "text.jsonl"
    text = "one\u2028two\x85three"
    path.write_text(json.dumps({"text": text}, ensure_ascii=False) + "\n", encoding="utf-8")
    assert read_text(path) == text
    path.write_text('{"text": 3}\n')
    with pytest.raises(InputError, match=r'text.jsonl:1: "text" is int, not a string'):
        read_text(path)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="cannot be read as UTF-8 text"):
        read_text(path)
