"""match="auto" of checkpoints: the trials of a merge in memory, stopped or not."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import hetmerge as hm
from hetmerge import forecast as forecasting
from hetmerge import trials
from hetmerge.alignment import find_stages
from hetmerge.batches import as_call
from hetmerge.folder_merge import unfinished
from hetmerge.forecast import forecast
from hetmerge.network import Network, outputs_of
from hetmerge.options import Options
from hetmerge.shard_writer import ShardWriter
from hetmerge.shards import Stored

pytest.importorskip("transformers")


class Killed(BaseException):
    """Nothing in the package catches this, as nothing can catch a kill."""


def files_in(folder: Path) -> dict[str, bytes]:
    timed = ("report.json", "report.html")
    found = (f for f in folder.rglob("*") if f.is_file() and f.name not in timed)
    return {str(f.relative_to(folder)): f.read_bytes() for f in found}


@pytest.mark.parametrize(
    ("family", "tried"),
    [
        ("llama", ["permute", "zip", "pca"]),
        ("vit", ["permute", "zip", "select"]),
    ],
)
def test_trials_are_those_in_memory(parents, tmp_path, monkeypatch, family, tried):
    models, folders, batches = parents(family)
    # In memory the layers are aligned on all inputs, for trials too.
    options = {"match": "auto", "importance": "weights", "depth": "uniform", "progress": False}
    wanted = hm.merge(models, batches, **options)
    out, aligned = tmp_path / "out", []
    align = hm.calibration.align
    with monkeypatch.context() as patch:
        patch.setattr(
            hm.calibration, "align", lambda *a, **k: (aligned.append(1), align(*a, **k))[1]
        )
        result = hm.merge_to(out, folders, batches, **options)
    assert len(aligned) == 2  # for all trials, and for the merge on all inputs
    assert list(result.plan.trials) == tried
    assert result.plan.trials == wanted.plan.trials
    best = max(result.plan.trials, key=result.plan.trials.__getitem__)
    assert sum(f"'auto' took '{best}'" in note for note in result.report.notes) == 1
    assert hm.AlignmentPlan.load(out / "plan").trials == result.plan.trials
    model = type(models[0]).from_pretrained(out).eval()
    with torch.no_grad():
        for batch in batches:
            assert torch.equal(model(**batch).logits, wanted.model(**batch).logits)
    one = hm.merge_to(tmp_path / "one", folders, batches, **{**options, "match": best})
    assert one.report.merged_parameters == result.report.merged_parameters
    shards = [files_in(folder)["model.safetensors"] for folder in (out, tmp_path / "one")]
    assert shards[0] == shards[1]
    assert sorted(p.name for p in out.iterdir()) == sorted(
        p.name for p in (tmp_path / "one").iterdir()
    )


def test_the_same_bytes_after_a_stop(parents, tmp_path, monkeypatch):
    _, folders, batches = parents("llama")
    options = {"match": "auto", "progress": False}
    straight = hm.merge_to(tmp_path / "straight", folders, batches, **options)
    finish, judged = ShardWriter.finish, []
    count = 0

    def dies(self, names):
        nonlocal count
        count += 1
        if count > 40:  # in the second of three trials
            raise Killed
        finish(self, names)

    with monkeypatch.context() as patch:
        patch.setattr(ShardWriter, "finish", dies)
        with pytest.raises(Killed):
            hm.merge_to(tmp_path / "out", folders, batches, **options)
    known = unfinished(tmp_path / "out") / trials.FOLDER / trials.KNOWN
    assert list(json.loads(known.read_text())) == ["permute"]
    trial = trials.trial
    monkeypatch.setattr(trials, "trial", lambda *a: (judged.append(1), trial(*a))[1])
    with monkeypatch.context() as patch:

        def planned(*_):
            raise Killed

        patch.setattr(trials.Choice, "told", planned)
        with pytest.raises(Killed):
            hm.merge_to(tmp_path / "out", folders, batches, **options)
    assert len(judged) == 2
    assert {path.name for path in known.parent.iterdir()} == {trials.KNOWN, trials.CHOICE}
    hm.merge_to(tmp_path / "out", folders, batches, **options)
    assert len(judged) == 2
    assert len(straight.plan.trials) == 3
    assert files_in(tmp_path / "straight") == files_in(tmp_path / "out")
    assert sorted(p.name for p in tmp_path.glob(".*")) == []


def test_what_the_memory_does_not_hold_is_not_tried(parents, tmp_path, monkeypatch):
    _, folders, batches = parents("llama")
    needed = forecasting.planning_bytes

    def large(setting, calls, options):
        return 10**15 if options.match == "pca" else needed(setting, calls, options)

    monkeypatch.setattr(forecasting, "planning_bytes", large)
    models = [hm.open_checkpoint(folder) for folder in folders]
    told = forecasting.forecast(models, [as_call(b) for b in batches], Options(match="auto"))
    assert told.planning_bytes < 10**15
    assert any("'pca' cannot be tried" in note for note in told.notes)
    options = {"refit": False, "progress": False}
    result = hm.merge_to(tmp_path / "out", folders, batches, match="auto", **options)
    assert list(result.plan.trials) == ["permute", "zip"]
    (note,) = [note for note in result.report.notes if "cannot be tried" in note]
    assert note.startswith("match='auto': 'pca' cannot be tried: match: planning 'pca' takes ")


def test_a_plan_alone_tries_in_a_temporary_folder(parents, tmp_path, monkeypatch):
    modules, folders, batches = parents("gpt2")
    models = [hm.open_checkpoint(folder) for folder in folders]
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    options = {"importance": "weights", "depth": "uniform", "progress": False, "refit": False}
    plan = hm.plan(models, batches, **options)
    wanted = hm.plan(modules, batches, **options)
    assert plan.trials == wanted.trials
    for one, two in zip(plan.spaces, wanted.spaces, strict=True):
        assert all(a is b or torch.equal(a, b) for a, b in zip(one.labels, two.labels, strict=True))
    assert not list((tmp_path / "temporary").iterdir())


def test_nothing_is_left_of_trials_that_cannot_be(parents, tmp_path):
    _, folders, batches = parents("llama")
    file = folders[1] / "model.safetensors"
    tensors = load_file(file)
    tensors["model.layers.1.mlp.up_proj.weight"][0, 0] = float("nan")
    save_file(tensors, file, {"format": "pt"})
    with pytest.raises(hm.InputError, match="mlp.up_proj.weight' holds NaN or infinity"):
        hm.merge_to(tmp_path / "out", folders, batches, progress=False)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["parent0", "parent1"]


def test_a_forecast_counts_the_trials(parents, monkeypatch):
    _, folders, batches = parents("llama")
    models = [hm.open_checkpoint(folder) for folder in folders]
    monkeypatch.setattr(Stored, "read", lambda *_: pytest.fail("a weight was read"))
    calls = [as_call(batch) for batch in batches]
    found = {m: forecast(models, calls, Options(match=m)) for m in ("auto", "zip", "pca")}
    assert found["auto"].parameters == found["zip"].parameters
    assert found["auto"].planning_bytes >= found["pca"].planning_bytes
    assert found["auto"].flops > 2 * found["zip"].flops
    assert any("3 ways of matching are tried" in note for note in found["auto"].notes)


def test_layers_are_read_once_for_all_that_is_judged(parents, monkeypatch):
    (model, _), (folder, _), batches = parents("llama")
    calls = [as_call(batch) for batch in batches]
    network = Network(hm.open_checkpoint(folder), calls[0], "parent", fold=False)
    seen = []
    read = Stored.read
    monkeypatch.setattr(Stored, "read", lambda place, *a: (seen.append(place), read(place, *a))[1])
    for batch, (logits, *_) in zip(
        batches, outputs_of(network, find_stages([network])[0], calls), strict=True
    ):
        with torch.no_grad():
            torch.testing.assert_close(logits, model(**batch).logits)
    places = network.state.stored
    assert len(calls) > 1
    assert seen.count(places["model.layers.1.mlp.down_proj.weight"]) == 1
    assert seen.count(places["lm_head.weight"]) == len(calls)
