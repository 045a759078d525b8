"""A plan from disk that was stopped goes on from finished layers, to the same bytes."""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import hetmerge as hm
from hetmerge import halfway
from hetmerge.folder_merge import HALFWAY, unfinished
from hetmerge.shards import Stored
from hetmerge.snapshots import read_tree, write_tree


class Killed(BaseException):
    """Nothing in the package catches this, as nothing can catch a kill."""


@pytest.fixture
def mortal(monkeypatch):
    """mortal(n): planning dies at its n-th snapshot, before or after it is written."""
    passed = halfway.Halfway.passed
    monkeypatch.setattr(halfway, "EVERY", 0.0)

    def dies(after: int, written: bool = True) -> None:
        count = 0

        def once(self) -> None:
            nonlocal count
            count += 1
            if count < after or written:
                passed(self)
            if count == after:
                raise Killed

        monkeypatch.setattr(halfway.Halfway, "passed", once)

    yield dies
    monkeypatch.setattr(halfway.Halfway, "passed", passed)


def files_in(folder: Path) -> dict[str, bytes]:
    timed = ("report.json", "report.html")
    found = (f for f in folder.rglob("*") if f.is_file() and f.name not in timed)
    return {str(f.relative_to(folder)): f.read_bytes() for f in found}


@pytest.mark.parametrize(
    ("family", "options", "after", "written"),
    [
        ("llama", {"match": "zip"}, 1, True),
        ("llama", {"match": "zip"}, 4, True),
        ("llama", {"match": "pca"}, 2, True),
        ("heads", {"match": "select"}, 3, False),
        ("gpt2", {"match": "permute"}, 3, True),
        ("depths of bert", {"match": "zip", "missing": "repeat"}, 3, True),
        ("llama", {"match": "zip", "budget": {"parameters": 50000}}, 3, True),
        ("llama", {"match": "pca", "budget": {"parameters": 70000}}, 7, True),
    ],
)
def test_the_same_bytes(parents, tmp_path, monkeypatch, mortal, family, options, after, written):
    _, folders, batches = parents(family)
    options = {**options, "progress": False, "refit": False}
    hm.merge_to(tmp_path / "straight", folders, batches, **options)
    mortal(after, written)
    with pytest.raises(Killed):
        hm.merge_to(tmp_path / "out", folders, batches, **options)
    assert (unfinished(tmp_path / "out") / HALFWAY).is_file()
    (unfinished(tmp_path / "out") / f".{HALFWAY}.draft").write_bytes(b"cut off by a kill")
    aligned = []
    align = hm.calibration.align
    monkeypatch.setattr(
        hm.calibration, "align", lambda *a, **k: (aligned.append(1), align(*a, **k))[1]
    )
    mortal(100)
    hm.merge_to(tmp_path / "out", folders, batches, **options)
    assert not aligned
    assert files_in(tmp_path / "straight") == files_in(tmp_path / "out")
    assert not (tmp_path / "out" / HALFWAY).exists()


def test_finished_layers_are_not_read_again(parents, tmp_path, monkeypatch, mortal):
    models, folders, batches = parents("llama")
    mortal(2)  # behind the alignment and the first layer
    with pytest.raises(Killed):
        hm.merge_to(tmp_path / "out", folders, batches, progress=False, match="permute")
    seen = []
    read = Stored.read
    monkeypatch.setattr(Stored, "read", lambda place, *a: (seen.append(place), read(place, *a))[1])
    checkpoints = [hm.open_checkpoint(folder) for folder in folders]
    mortal(100)

    def planned(plan, ready):
        raise Killed

    options = {"progress": False, "match": "permute", "prepared": planned}
    with pytest.raises(Killed):
        hm.merge_to(tmp_path / "out", checkpoints, batches, **options)
    first = checkpoints[0].state.stored["model.layers.0.mlp.up_proj.weight"]
    last = checkpoints[0].state.stored["model.layers.2.mlp.up_proj.weight"]
    assert first not in seen
    assert last in seen
    assert len(models[0].model.layers) == 3


def test_inputs_that_do_not_fit_leave_nothing(parents, tmp_path, mortal):
    _, folders, batches = parents("llama")
    mortal(100)
    models = [hm.open_checkpoint(folder) for folder in folders]
    models[0].state.put("model.layers.2.mlp.up_proj.weight", torch.full((64, 32), torch.nan))
    with pytest.raises(hm.InputError, match="NaN"):
        hm.merge_to(tmp_path / "out", models, batches, progress=False, match="zip")
    assert not unfinished(tmp_path / "out").exists()


def test_no_snapshot_without_room(parents, tmp_path, monkeypatch, mortal):
    _, folders, batches = parents("llama")
    usage = shutil.disk_usage(tmp_path)._replace(free=0)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    mortal(3)
    with pytest.raises(Killed):
        hm.merge_to(tmp_path / "out", folders, batches, progress=False, match="zip")
    assert not unfinished(tmp_path / "out").exists()


def test_a_snapshot_that_cannot_be_read_is_named(parents, tmp_path, mortal):
    _, folders, batches = parents("llama")
    mortal(2)
    with pytest.raises(Killed):
        hm.merge_to(tmp_path / "out", folders, batches, progress=False, match="zip")
    file = unfinished(tmp_path / "out") / HALFWAY
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(hm.CheckpointError, match=rf"{HALFWAY}: has .* cut short or damaged"):
        hm.merge_to(tmp_path / "out", folders, batches, progress=False, match="zip")
    save_file({"0": torch.zeros(3)}, file, {"hetmerge snapshot, version 0": "{}"})
    with pytest.raises(hm.CheckpointError, match="is not a hetmerge snapshot, version 2; remove"):
        hm.merge_to(tmp_path / "out", folders, batches, progress=False, match="zip")


def test_trees_keep_layouts_and_shared_memory(tmp_path):
    base = torch.randn(4, 6)
    tree = {
        ("a", 1): [base, base.T, base[1:, ::2], base[:1].expand(5, 6)],
        2: (None, True, 1.5, "text", {}, [], ()),
        "kinds": [base.to(kind) for kind in (torch.bfloat16, torch.int64, torch.bool)],
        "empty": [torch.zeros(0, 3), torch.zeros(()), torch.zeros(0, dtype=torch.int64)],
    }
    write_tree(tmp_path / "file", tree)
    found = read_tree(tmp_path / "file")
    assert list(found) == list(tree)
    assert found[2] == tree[2]
    for key in (("a", 1), "kinds", "empty"):
        for mine, theirs in zip(found[key], tree[key], strict=True):
            assert torch.equal(mine, theirs)
            assert mine.stride() == theirs.stride()
            assert mine.dtype == theirs.dtype
    whole, *views = found["a", 1]
    assert {view.untyped_storage().data_ptr() for view in views} == {
        whole.untyped_storage().data_ptr()
    }
