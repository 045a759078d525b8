"""Dense maps of a merge from disk lie in files: memory holds those that are being used."""

import shutil

import pytest
import torch

import hetmerge as hm
from hetmerge import halfway, maps_cost, planning
from hetmerge.folder_merge import PLAN, unfinished
from hetmerge.maps import MapsOf, StoredMaps, store_maps

pytest.importorskip("transformers")


def test_maps_are_those_that_were_stored(tmp_path):
    maps = {0: torch.arange(6.0).reshape(2, 3), 2: torch.zeros(0, 3), 3: torch.rand(4, 3).T}
    found = store_maps(tmp_path / "new" / "7.safetensors", maps)
    assert list(found) == [0, 2, 3]
    assert all(torch.equal(found[m], x) and found[m].dtype == x.dtype for m, x in maps.items())
    of = MapsOf({7: found, 8: {1: torch.ones(1)}}, 3)
    assert list(of) == [7]
    assert len(of) == 1
    assert torch.equal(of[7], maps[3])
    (tmp_path / "new" / "7.safetensors").unlink()
    assert 0 in found  # which reads nothing
    assert 7 in of
    with pytest.raises(hm.CheckpointError, match="7.safetensors: cannot be read"):
        found[0]
    (tmp_path / "file").write_text("")
    with pytest.raises(hm.CheckpointError, match="cannot be written"):
        store_maps(tmp_path / "file" / "8.safetensors", maps)


@pytest.mark.parametrize(("family", "match"), [("llama", "pca"), ("heads", "select")])
def test_memory_holds_no_maps(parents, tmp_path, family, match):
    _, folders, batches = parents(family)
    options = {"match": match, "refit": False, "progress": False}
    seen = []

    def prepared(plan, ready):
        held = [p for p in ready.made.projector.partitions.values() if p.readoff]
        seen.extend(type(p.readoff) for p in held)
        assert all(x.path.parent == work / PLAN for p in held for x in p.readoff.places.values())
        assert not (work / halfway.MAPS).exists()

    work = unfinished(tmp_path / "out")
    result = hm.merge_to(tmp_path / "out", folders, batches, prepared=prepared, **options)
    assert set(seen) == {StoredMaps}
    in_memory = hm.plan([hm.open_checkpoint(f) for f in folders], batches, **options)
    loaded = hm.AlignmentPlan.load(tmp_path / "out" / PLAN)
    for mine, read, wanted in zip(result.plan.spaces, loaded.spaces, in_memory.spaces, strict=True):
        assert mine.readoff.keys() == read.readoff.keys() == wanted.readoff.keys()
        for m, rows in wanted.readoff.items():
            assert torch.equal(mine.readoff[m], rows)
            assert torch.equal(read.readoff[m], rows)
    result.plan.save(tmp_path / "again")
    for file in (tmp_path / "again").iterdir():
        assert file.read_bytes() == (tmp_path / "out" / PLAN / file.name).read_bytes()
    shutil.rmtree(tmp_path / "out")
    assert any(len(rows) for space in loaded.spaces for rows in space.readoff.values())


def test_a_disk_without_room_is_noticed_first(parents, tmp_path, monkeypatch):
    _, folders, batches = parents("llama")
    monkeypatch.setattr(planning, "gather", lambda *_: pytest.fail("moments were gathered"))
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(hm.CheckpointError, match=r"planning 'pca' needs 0\.00 GB, 0\.00 GB are"):
        hm.merge_to(tmp_path / "out", folders, batches, match="pca", progress=False)
    assert not unfinished(tmp_path / "out").exists()


def test_what_the_disk_does_not_hold_is_not_tried(parents, tmp_path, monkeypatch):
    _, folders, batches = parents("llama")
    needed = maps_cost.maps_bytes
    monkeypatch.setattr(
        maps_cost, "maps_bytes", lambda setting, match: needed(setting, match) * 10**12
    )
    result = hm.merge_to(
        tmp_path / "out", folders, batches, match="auto", refit=False, progress=False
    )
    assert list(result.plan.trials) == ["permute", "zip"]
    (note,) = [note for note in result.report.notes if "cannot be tried" in note]
    assert "planning 'pca' needs" in note
