import csv
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from hetmerge import bench_command

from .conftest import Finished

Run = Callable[..., Finished]


def test_rows_of_a_run_are_added_to_a_table(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("case,implementation\nkept,hetmerge\nalign layer 16 x 8,hetmerge\n")
    assert run("bench", "segments", "--rows", str(path)).code == 0
    with path.open(newline="") as file:
        rows = {row["case"]: row for row in csv.DictReader(file)}
    assert set(rows) == {"kept", "align layer 16 x 8", "align segment 16 x 8"}
    measured = rows["align layer 16 x 8"]
    assert float(measured["ms_p20"]) <= float(measured["ms_p50"]) <= float(measured["ms_p80"])
    name, ratio = measured["ratios"].split()
    assert name == "exhaustive"
    assert float(ratio) > 1  # 6,435 segmentations against one dynamic program


def test_unknown_benchmark_is_refused(run: Run) -> None:
    finished = run("bench", "melting")
    assert finished.code == 2
    assert "no benchmark is named 'melting'" in finished.err
    assert "zipping" in finished.err


def test_without_a_checkout_it_says_so(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench_command, "FOLDER", tmp_path)
    finished = run("bench")
    assert finished.code == 2
    assert "run `hetmerge bench` from a checkout" in finished.err


def test_roof_and_ratio_arithmetic() -> None:
    path = Path(bench_command.FOLDER) / "rows.py"
    spec = importlib.util.spec_from_file_location("bench_rows", path)
    assert spec is not None
    assert spec.loader is not None
    rows = importlib.util.module_from_spec(spec)
    sys.modules["bench_rows"] = rows
    spec.loader.exec_module(rows)
    roofs = rows.Roofs(1e9, {"float32": 1e9, "bfloat16": 4e9})
    ours = rows.Timing("c", "hetmerge", 9, 10, 11, flops=2e7, bytes=5e6, dtype="bfloat16")
    other = rows.Timing("c", "torch", 24, 25, 26, dtype="bfloat16")
    (row,) = rows.rows_of([ours, other], roofs, "machine", 2)
    assert (row.ms_p50, row.gb_per_s, row.tflop_per_s) == ("10", "0.5", "0.002")
    assert row.roof_fraction == "0.5"  # 5 ms to move the bytes and 5 ms to compute, in 10 ms
    assert row.ratios == "torch 2.5"
