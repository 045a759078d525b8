"""Merges of checkpoints: the same as in memory, in shards, within bounds, with clear errors."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import hetmerge as hm
from hetmerge.folder_merge import unfinished
from hetmerge.lazy import NeedsMemory
from hetmerge.shards import Stored
from hetmerge.weights import OnDisk

tf = pytest.importorskip("transformers")


def state_in(folder: Path) -> dict[str, torch.Tensor]:
    files = sorted(folder.glob("*.safetensors"))
    return {name: t for file in files for name, t in load_file(file).items()}


def changed(folder: Path, name: str, change) -> None:
    """Rewrite a checkpoint with one tensor changed, or without it."""
    file = folder / "model.safetensors"
    tensors = load_file(file)
    found = change(tensors.pop(name))
    save_file({**tensors, **({name: found} if found is not None else {})}, file, {"format": "pt"})


@pytest.mark.parametrize(
    ("family", "options"),
    [
        ("llama", {"match": "zip"}),
        ("heads", {"match": "zip"}),
        ("llama", {"match": "pca", "importance": "weights"}),
        ("heads", {"match": "select", "importance": "weights"}),
        ("gpt2", {"match": "permute"}),
        ("bert", {"match": "zip"}),
        ("depths of bert", {"match": "zip", "missing": "repeat"}),
        ("vit", {"match": "select", "importance": "weights"}),
        ("llama", {"match": "pca", "importance": "weights", "budget": {"parameters": 50000}}),
        ("gpt2", {"match": "select", "importance": "weights", "budget": {"flops": 400000.0}}),
    ],
)
def test_on_disk_as_in_memory(parents, tmp_path, family, options):
    models, folders, batches = parents(family)
    wanted = hm.merge(models, batches, progress=False, **options)
    out = tmp_path / "out"
    result = hm.merge_to(out, folders, batches, progress=False, **options)
    model = type(models[0]).from_pretrained(out).eval()
    with torch.no_grad():
        for batch in batches:
            assert torch.equal(model(**batch).logits, wanted.model(**batch).logits)
    assert [fit["after"] for fit in result.report.fits] == pytest.approx(
        [fit["after"] for fit in wanted.report.fits], abs=0
    )
    assert result.report.merged_parameters == wanted.report.merged_parameters
    assert json.loads((out / "report.json").read_text())["fits"]
    assert not list(tmp_path.glob(".out*"))


def test_shards_hold_what_one_file_holds(parents, tmp_path):
    _, folders, batches = parents("llama")
    options = {"progress": False, "refit": False, "match": "permute"}
    hm.merge_to(tmp_path / "one", folders, batches, **options)
    hm.merge_to(tmp_path / "many", folders, batches, shard_bytes=20_000, **options)
    whole, parts = state_in(tmp_path / "one"), state_in(tmp_path / "many")
    assert whole.keys() == parts.keys()
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    files = sorted(file.name for file in (tmp_path / "many").glob("model-*"))
    assert len(files) > 2
    assert files[0] == f"model-00001-of-{len(files):05d}.safetensors"
    index = json.loads((tmp_path / "many" / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"].values()) == set(files)
    assert index["metadata"]["total_size"] == sum(4 * t.numel() for t in parts.values())
    with safe_open(tmp_path / "many" / files[0], "pt") as file:
        assert file.metadata() == {"format": "pt"}
    tf.LlamaForCausalLM.from_pretrained(tmp_path / "many")


class Killed(BaseException):
    """Nothing in the package catches this, as nothing can catch a kill."""


@pytest.mark.parametrize("after", [1, 20])
def test_a_killed_merge_goes_on_to_the_same_bytes(parents, tmp_path, monkeypatch, after):
    _, folders, batches = parents("llama")
    options = {"match": "zip", "shard_bytes": 20_000, "out_dtype": torch.bfloat16}
    options["progress"] = False
    hm.merge_to(tmp_path / "straight", folders, batches, **options)

    from hetmerge.shard_writer import ShardWriter

    finish, count = ShardWriter.finish, 0

    def mortal(self, names):
        nonlocal count
        count += 1
        if count > after:
            raise Killed
        finish(self, names)

    monkeypatch.setattr(ShardWriter, "finish", mortal)
    with pytest.raises(Killed):
        hm.merge_to(tmp_path / "out", folders, batches, **options)
    assert not (tmp_path / "out").exists()
    assert unfinished(tmp_path / "out").is_dir()
    solved = []
    monkeypatch.setattr(ShardWriter, "finish", lambda self, n: (solved.append(n), finish(self, n)))
    hm.merge_to(tmp_path / "out", folders, batches, **options)
    everything = len(state_in(tmp_path / "out"))
    assert sum(map(len, solved)) <= everything - after
    straight = {f.name: f for f in (tmp_path / "straight").iterdir() if f.is_file()}
    assert straight.keys() == {f.name for f in (tmp_path / "out").iterdir() if f.is_file()}
    for name, file in straight.items():
        if name not in ("report.json", "report.html"):  # they hold seconds
            assert file.read_bytes() == (tmp_path / "out" / name).read_bytes(), name
    fits = [json.loads((tmp_path / d / "report.json").read_text())["fits"]
            for d in ("straight", "out")]  # fmt: skip
    assert fits[0] == fits[1]


def test_a_merge_with_other_options_does_not_go_on(parents, tmp_path, monkeypatch):
    _, folders, batches = parents("llama")
    from hetmerge.shard_writer import ShardWriter

    def die(self, names):
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(ShardWriter, "finish", die)
        with pytest.raises(Killed):
            hm.merge_to(tmp_path / "out", folders, batches, progress=False, match="zip")
    with pytest.raises(hm.CheckpointError, match="other parents, inputs or options; remove it"):
        hm.merge_to(tmp_path / "out", folders, batches, progress=False, match="permute")


def test_a_merge_that_was_stopped_before_it_knew_anything(parents, tmp_path):
    _, folders, batches = parents("llama")
    work = unfinished(tmp_path / "out")
    work.mkdir()
    (work / ".run.json.draft").write_bytes(b"{")
    hm.merge_to(tmp_path / "out", folders, batches, progress=False, refit=False, match="zip")
    assert not work.exists()
    assert not list((tmp_path / "out").glob(".*"))


def test_one_process_at_a_time(parents, tmp_path):
    fcntl = pytest.importorskip("fcntl")
    _, folders, batches = parents("llama")
    inside = []

    def busy(plan, ready):
        work = unfinished(tmp_path / "out")
        with (work / "run.json").open("rb") as file, pytest.raises(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        with pytest.raises(hm.CheckpointError, match="another process is filling it"):
            hm.merge_to(
                tmp_path / "out", folders, batches, progress=False, refit=False, match="zip"
            )
        assert work.is_dir()
        inside.append(1)

    options = {"match": "zip", "progress": False, "refit": False}
    hm.merge_to(tmp_path / "out", folders, batches, prepared=busy, **options)
    assert inside


def test_what_is_kept_of_a_parent_is_little(parents, tmp_path, monkeypatch):
    models, folders, batches = parents("llama")
    most = 0
    release = OnDisk.release

    def measured(self):
        nonlocal most
        most = max(most, sum(t.numel() for t in self._kept.values()))
        release(self)

    monkeypatch.setattr(OnDisk, "release", measured)
    hm.merge_to(tmp_path / "out", folders, batches, progress=False, match="zip")
    units = [sum(p.numel() for p in layer.parameters()) for m in models for layer in m.model.layers]
    tables = max(m.model.embed_tokens.weight.numel() for m in models)
    assert 0 < most <= max(units) + tables


def test_every_weight_is_read_once_for_the_moments(parents, monkeypatch):
    _, folders, batches = parents("llama")
    read, seen = Stored.read, []
    models = [hm.open_checkpoint(folder) for folder in folders]
    monkeypatch.setattr(Stored, "read", lambda place, *a: (seen.append(place), read(place, *a))[1])
    hm.plan(models, batches, progress=False, match="permute")
    whole = [place for place in seen if place.shape[0] != 31]  # rows of tables are read apart
    assert max(map(whole.count, whole)) == len(batches) + 1  # CKA looks at each


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda t: t.fill_(float("nan")), "mlp.up_proj.weight' holds NaN or infinity"),
        (lambda t: None, "holds no tensor 'model.layers.1.mlp.up_proj.weight'"),
        (lambda t: t[:-1].clone(), "mlp.up_proj.weight' is .* config.json needs"),
    ],
)
def test_damaged_weights(parents, tmp_path, change, said):
    _, folders, batches = parents("llama")
    changed(folders[1], "model.layers.1.mlp.up_proj.weight", change)
    with pytest.raises(hm.HetmergeError, match=rf"parent1.*{said}"):
        hm.merge_to(tmp_path / "out", folders, batches, progress=False, match="zip")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["parent0", "parent1"]


def test_too_little_disk_is_told_before_work(parents, tmp_path, monkeypatch):
    _, folders, batches = parents("llama")
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr("hetmerge.shard_writer.shutil.disk_usage", lambda path: usage)
    with pytest.raises(hm.CheckpointError, match=r"needs 0\.00 GB, 0\.00 GB are free"):
        hm.merge_to(tmp_path / "out", folders, batches, progress=False, match="zip")


def test_overflow_of_the_written_type(parents, tmp_path):
    _, folders, batches = parents("llama")
    for folder in folders:
        changed(folder, "model.embed_tokens.weight", lambda t: t * 1e6)
    with pytest.raises(hm.CheckpointError, match=r"tensor 'model.embed_tokens.* float16 ends at"):
        hm.merge_to(
            tmp_path / "out",
            folders,
            batches,
            out_dtype=torch.float16,
            progress=False,
            refit=False,
            match="zip",
        )


def test_what_parents_on_disk_cannot_do(parents, tmp_path):
    models, folders, batches = parents("llama")
    with pytest.raises(hm.InputError, match="stop_at: a partial merge needs"):
        hm.merge_to(tmp_path / "out", folders, batches, stop_at=1, match="zip")
    with pytest.raises(hm.InputError, match="some are modules and some are checkpoints"):
        hm.plan([models[0], hm.open_checkpoint(folders[1])], batches, match="zip")


def test_batch_norms_need_memory(tmp_path):
    from families import pretrained as hf

    folders = [tmp_path / "deep", tmp_path / "wide"]
    for folder, sizes in zip(folders, ((3, 8), (2, 12)), strict=True):
        hf.lively(hf.resnet(*sizes), 1).save_pretrained(folder)
    with pytest.raises(NeedsMemory, match="deep: has BatchNorms.*give the module"):
        hm.merge_to(tmp_path / "out", folders, hf.images(), match="zip")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["deep", "wide"]
