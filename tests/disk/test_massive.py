"""Positions of massive activations do not count."""

import pytest
import torch

import hetmerge as hm
from hetmerge import folder_merge
from hetmerge import massive as massive_of
from hetmerge.batches import rows_for
from hetmerge.massive import without_massive

tf = pytest.importorskip("transformers")


def test_positions_of_a_loud_token_are_left_out(parents, tmp_path):
    models, _, batches = parents("llama")
    with torch.no_grad():  # token 3 drowns everything else in the second parent
        models[1].model.embed_tokens.weight[3] *= 1000
    folders = [tmp_path / "loud0", tmp_path / "loud1"]
    for model, folder in zip(models, folders, strict=True):
        model.save_pretrained(folder)
    found = without_massive([hm.open_checkpoint(folder) for folder in folders], batches)
    for batch, joint in zip(batches, found, strict=True):
        counted = batch["attention_mask"].bool() & (batch["input_ids"] != 3)
        wanted = counted.flatten().nonzero().flatten()
        for member in (0, 1, None):
            assert torch.equal(rows_for(joint, member), wanted)
    plan = hm.plan(models, found, progress=False, match="permute")
    other = hm.plan(models, batches, progress=False, match="permute")
    differ = [
        not torch.equal(a.labels[0], b.labels[0]) or str(a.labels[1]) != str(b.labels[1])
        for a, b in zip(plan.spaces, other.spaces, strict=True)
        if a.labels[0] is not None
    ]
    assert any(differ)


def test_without_massive_positions_all_count(parents):
    models, _, batches = parents("llama")
    found = without_massive(models, [{"input_ids": batch["input_ids"]} for batch in batches])
    assert all(len(rows_for(joint, None)) == 96 for joint in found)


def test_images_have_no_such_positions(parents, tmp_path):
    _, folders, batches = parents("vit")
    with pytest.raises(hm.InputError, match="exclude_massive: a batch holds no tokens"):
        hm.merge_to(tmp_path / "out", folders, batches, progress=False, exclude_massive=True)
    assert not [path for path in tmp_path.iterdir() if "out" in path.name]


def test_a_stopped_merge_does_not_look_again(parents, tmp_path, monkeypatch):
    _, folders, batches = parents("llama")
    options = {"match": "permute", "refit": False, "progress": False, "exclude_massive": True}
    hm.merge_to(tmp_path / "straight", folders, batches, **options)
    looked = []
    look = massive_of._massive
    monkeypatch.setattr(massive_of, "_massive", lambda *a: (looked.append(1), look(*a))[1])

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(folder_merge, "_chosen", killed)
        with pytest.raises(KeyboardInterrupt):
            hm.merge_to(tmp_path / "out", folders, batches, **options)
    assert len(looked) == len(folders)
    with pytest.raises(hm.CheckpointError, match="other parents, inputs or options"):
        hm.merge_to(tmp_path / "out", folders, batches, **{**options, "exclude_massive": False})
    hm.merge_to(tmp_path / "out", folders, batches, **options)
    assert len(looked) == len(folders)
    straight, out = (
        {f.name: f.read_bytes() for f in (tmp_path / name).glob("*.safetensors")}
        for name in ("straight", "out")
    )
    assert straight == out
    assert straight
    assert not list(tmp_path.rglob("massive*"))
