"""How much memory there is, also where a container may not have all of the machine's."""

from pathlib import Path

import pytest

from hetmerge import memory


@pytest.mark.parametrize(
    ("text", "wanted"), [("4096\n", 4096), ("max\n", None), ("9" * 19 + "\n", None), (None, None)]
)
def test_a_limit_of_the_control_group(tmp_path: Path, monkeypatch, text, wanted) -> None:
    monkeypatch.setattr(memory, "LIMITS", ())
    machine = memory.total()
    assert machine > 0
    file = tmp_path / "memory.max"
    if text:
        file.write_text(text)
    monkeypatch.setattr(memory, "LIMITS", (file,))
    assert memory.total() == (wanted or machine)
