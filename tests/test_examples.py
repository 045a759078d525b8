"""The examples run, and what they print is as good as their networks are."""

import re
import sys
from pathlib import Path
from runpy import run_path

import pytest

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
CHANCE = 0.1  # of ten digits


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "least"),
    [
        ("two_vision_models", 0.8),
        ("many_parents", 0.6),
        ("partial_merge", 0.8),
        ("choose_width", 0.8),
        ("polish", 0.8),
    ],
)
def test_example(
    name: str, least: float, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", [name])
    monkeypatch.syspath_prepend(str(EXAMPLES))
    run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
    scores = [
        float(s)
        for s in re.findall(r"(?:digits|accuracy|again):? +(0\.\d+)", capsys.readouterr().out)
    ]
    assert scores
    assert min(scores) > CHANCE
    assert max(scores) >= least
