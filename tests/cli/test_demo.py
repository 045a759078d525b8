import json
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from .conftest import Finished


@pytest.mark.slow
def test_demo_prints_one_json_line_and_a_picture(
    tmp_path: Path, run: Callable[..., Finished]
) -> None:
    done = run("demo", "--json", "--output", tmp_path / "demo")
    assert done.code == 0, done.err
    (line,) = done.out.splitlines()
    result = json.loads(line)
    rows = {row["name"]: row for row in result["rows"]}
    assert rows["parent A"]["first_half"] >= 0.95
    assert rows["parent B"]["second_half"] >= 0.95
    union, ensemble = rows["union"], rows["ensemble"]
    assert union["joint"] == pytest.approx(ensemble["joint"], abs=0.002)
    head_only = max(row["joint"] for name, row in rows.items() if name.startswith("head only"))
    for match in ("zip", "permute"):
        merged = rows[f"{match} + refit"]
        assert merged["joint"] > max(head_only, rows[match]["joint"])
        assert merged["parameters"] == rows["head only, body A"]["parameters"]
    assert result["seconds"] < 90
    with Image.open(result["picture"]) as picture:
        assert min(picture.size) > 300


def test_output_must_be_a_folder(tmp_path: Path, run: Callable[..., Finished]) -> None:
    (tmp_path / "file").write_text("")
    done = run("demo", "--output", tmp_path / "file")
    assert (done.code, done.out) == (2, "")
    assert "is not a folder" in done.err
