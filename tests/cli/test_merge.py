import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

import hetmerge as hm
from hetmerge import in_memory
from hetmerge.companions import CONFIG_COPY

from .conftest import Finished, write_config

Run = Callable[..., Finished]


def one_line(err: str) -> str:
    lines = err.splitlines()
    assert len(lines) == 1, err
    return lines[0]


def test_merges_two_factories_and_writes_a_loadable_folder(project: Path, run: Run) -> None:
    done = run("merge", "config.yaml", "out")
    assert done.code == 0, done.err
    assert "written to out" in done.out
    assert (project / "out" / CONFIG_COPY).read_text() == (project / "config.yaml").read_text()
    merged = hm.load(project / "out")
    inputs = torch.from_numpy(np.load(project / "inputs.npy"))
    assert merged(inputs).shape == (64, 3)
    assert not list(project.glob(".out.*"))


def test_one_parent_with_all_the_weight_comes_back(project: Path, run: Run) -> None:
    models = [
        {"python": "hetmerge_cli_factories:wide", "parameters": {"weight": 1.0}},
        {"python": "hetmerge_cli_factories:narrow", "parameters": {"weight": 0.0}},
    ]
    write_config(project / "config.yaml", models=models, parameters={"refit": False})
    done = run("merge", "config.yaml", "out", "--quiet")
    assert (done.code, done.out, done.err) == (0, "", "")
    inputs = torch.from_numpy(np.load(project / "inputs.npy"))
    wide = sys.modules["hetmerge_cli_factories"].wide()
    torch.testing.assert_close(hm.load(project / "out")(inputs), wide(inputs))


def test_existing_output_is_refused_and_untouched(project: Path, run: Run) -> None:
    (project / "out").mkdir()
    (project / "out" / "mine").write_text("kept")
    done = run("merge", "config.yaml", "out")
    assert done.code == 2
    assert "exists already" in one_line(done.err)
    assert [p.name for p in (project / "out").iterdir()] == ["mine"]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"models": [{"model": "nowhere"}, {"model": "there"}]}, "nowhere: no such directory"),
        ({"models": [{"python": "nothing_here:f"}] * 2}, "nothing_here:f: cannot be imported"),
        ({"models": [{"python": "hetmerge_cli_factories:no_module"}] * 2}, "got int"),
        ({"calibration": {"path": "nowhere.npy"}}, "calibration.path: nowhere.npy is not a file"),
        ({"calibration": {"path": "text.txt"}}, "needs a Hugging Face directory"),
        ({"calibration": {"path": "bytes.npy"}}, "holds bytes"),
        ({"calibration": {"path": "damaged.npz"}}, "holds no readable array"),
        ({"calibration": {"path": "two.npz"}}, "expected one array"),
        ({"parameters": {"alpha": -1}}, "parameters.alpha"),
        ({"device": "nowhere"}, "device: got 'nowhere'"),
        ({"device": "meta"}, "device: got 'meta'"),
    ],
)
def test_bad_input_exits_2_with_one_line(
    project: Path, run: Run, changes: dict[str, object], expected: str
) -> None:
    (project / "text.txt").write_text("words")
    (project / "damaged.npz").write_bytes(b"PK\x03\x04 no archive")
    np.save(project / "bytes.npy", np.zeros((4, 6), np.uint8))
    np.savez(project / "two.npz", a=np.zeros(3), b=np.zeros(3))
    write_config(project / "config.yaml", **changes)
    done = run("merge", "config.yaml", "out")
    assert done.code == 2
    assert expected in one_line(done.err)
    assert not (project / "out").exists()


def test_pickled_weights_are_refused(project: Path, run: Run) -> None:
    (project / "old").mkdir()
    (project / "old" / "pytorch_model.bin").write_bytes(b"anything")
    write_config(project / "config.yaml", models=[{"model": "old"}, {"model": "old"}])
    done = run("merge", "config.yaml", "out")
    assert done.code == 2
    assert "convert it to safetensors" in one_line(done.err)


@pytest.mark.parametrize("error", [hm.PlanError("no plan"), RuntimeError("out of\nmemory")])
def test_failed_merge_exits_1_and_leaves_nothing(
    project: Path, run: Run, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(in_memory, "plan_statistics", fail)
    before = sorted(project.iterdir())
    done = run("merge", "config.yaml", "out")
    assert done.code == 1
    assert " ".join(str(error).split()) in one_line(done.err)
    assert [p for p in sorted(project.iterdir()) if p.name != "__pycache__"] == before


def test_failed_writing_leaves_nothing(
    project: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("shutil.copyfile", full)
    before = {path.name for path in project.iterdir()}
    done = run("merge", "config.yaml", "out", "-q")
    assert done.code == 1
    assert "disk full" in one_line(done.err)
    assert {path.name for path in project.iterdir()} - {"__pycache__"} == before


def test_debug_shows_the_traceback(
    project: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HETMERGE_DEBUG", "1")
    with pytest.raises(hm.InputError, match="not a folder"):
        run("merge", "config.yaml", "missing/out")


def test_checkpoints_with_batch_norms_are_merged_in_memory(project: Path, run: Run) -> None:
    transformers = pytest.importorskip("transformers")
    for name, width in (("one", 8), ("two", 12)):
        config = transformers.ResNetConfig(
            embedding_size=width, hidden_sizes=[width, 16], depths=[1, 1], layer_type="basic"
        )
        transformers.ResNetForImageClassification(config).save_pretrained(project / name)
    np.save(project / "images.npy", np.random.default_rng(0).normal(size=(16, 3, 32, 32)))
    models = [{"model": "one"}, {"model": "two"}]
    write_config(project / "config.yaml", models=models, calibration={"path": "images.npy"})
    done = run("merge", "config.yaml", "out", "-q")
    assert done.code == 0, done.err
    model = transformers.ResNetForImageClassification.from_pretrained(project / "out")
    planned = run("plan", "config.yaml")
    assert planned.code == 0, planned.err
    count = sum(p.numel() for p in model.parameters())
    assert f"result: ResNetForImageClassification, {count:,} parameters" in planned.out


def test_a_merge_in_memory_is_planned_as_it_will_be(project: Path, run: Run) -> None:
    before = sorted(path.name for path in project.iterdir())
    planned = run("plan", "config.yaml")
    assert planned.code == 0, planned.err
    assert "runs in memory" in planned.out.splitlines()[0]
    assert "cost: 64 calibration inputs" in planned.out
    data = json.loads(run("plan", "config.yaml", "--json").out)
    assert [p.name for p in sorted(project.iterdir()) if p.name != "__pycache__"] == before
    assert run("merge", "config.yaml", "out", "-q").code == 0
    report = json.loads((project / "out" / "report.json").read_text())
    assert data["parameters"] == report["merged_parameters"]
    assert data["widths"] == {s["name"]: [s["sizes"], s["width"]] for s in report["spaces"]}
    assert data["cost"]["samples"] == 64
    assert data["notes"] == report["notes"][: len(data["notes"])]
    assert data["polish"] is None
