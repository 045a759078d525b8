"""Polish of a merge on disk: killed and continued, rounded, tied, foretold; and without disk."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import hetmerge as hm
from hetmerge import folder_merge
from hetmerge.batches import as_call
from hetmerge.folder_merge import POLISHED, unfinished
from hetmerge.forecast import forecast
from hetmerge.options import Options
from hetmerge.polishing import Polish
from hetmerge.shard_writer import ShardWriter

tf = pytest.importorskip("transformers")

SETTINGS = Polish(3, 1e-3)
OPTIONS = {"progress": False, "shard_bytes": 20_000, "match": "permute"}


class Killed(BaseException):
    """Nothing in the package catches this, as nothing can catch a kill."""


def same_files(one: Path, other: Path) -> None:
    names = {str(f.relative_to(one)) for f in one.rglob("*") if f.is_file()}
    assert names == {str(f.relative_to(other)) for f in other.rglob("*") if f.is_file()}
    for name in names - {"report.json", "report.html"}:  # they hold seconds
        assert (one / name).read_bytes() == (other / name).read_bytes(), name


def test_as_in_memory(parents, tmp_path):
    models, folders, batches = parents("llama")
    result = hm.merge(models, batches, progress=False, match="permute")
    wanted = result.polish(models, batches, steps=3, learning_rate=1e-3, progress=False)
    out = tmp_path / "out"
    found = hm.merge_to(out, folders, batches, polish=SETTINGS, **OPTIONS)
    model = tf.LlamaForCausalLM.from_pretrained(out).eval()
    with torch.no_grad():
        for batch in batches:
            assert torch.equal(model(**batch).logits, wanted.model(**batch).logits)
    assert found.report.polish == wanted.report.polish
    assert json.loads((out / "report.json").read_text())["polish"]["steps"] == 3
    assert "Polish (training)" in (out / "report.html").read_text()
    assert not list(tmp_path.glob(".out*"))


@pytest.mark.parametrize("place", ["step", "write"])
def test_a_killed_polish_goes_on_from_the_finished_merge(parents, tmp_path, monkeypatch, place):
    _, folders, batches = parents("llama")
    options = {**OPTIONS, "polish": SETTINGS, "out_dtype": torch.bfloat16}
    hm.merge_to(tmp_path / "straight", folders, batches, **options)
    count = 0

    def mortal(method, after):
        def call(self, *args, **kwargs):
            nonlocal count
            count += 1
            if count > after:
                raise Killed
            return method(self, *args, **kwargs)

        return call

    with monkeypatch.context() as patch:
        if place == "step":
            patch.setattr(torch.optim.Adam, "step", mortal(torch.optim.Adam.step, 1))
        else:
            write = ShardWriter.write

            def stopped(self, name, tensor, rows=None):
                if self.folder.name == POLISHED and name == "model.norm.weight":
                    raise Killed
                write(self, name, tensor, rows)

            patch.setattr(ShardWriter, "write", stopped)
        with pytest.raises(Killed):
            hm.merge_to(tmp_path / "out", folders, batches, **options)
    assert unfinished(tmp_path / "out").is_dir()
    solved = []
    finish = ShardWriter.finish
    monkeypatch.setattr(
        ShardWriter, "finish", lambda self, n: (solved.append(self.folder.name), finish(self, n))
    )
    hm.merge_to(tmp_path / "out", folders, batches, **options)
    assert solved == [POLISHED]  # nothing of the merge was computed again
    same_files(tmp_path / "straight", tmp_path / "out")
    assert tf.LlamaForCausalLM.from_pretrained(tmp_path / "out").dtype == torch.bfloat16
    reports = [json.loads((tmp_path / d / "report.json").read_text()) for d in ("straight", "out")]
    assert reports[0]["polish"] == reports[1]["polish"]
    assert not list(tmp_path.glob(".out*"))


def test_a_merge_that_was_to_be_polished_goes_on_without(parents, tmp_path, monkeypatch):
    """What was too large to be trained is not lost."""
    _, folders, batches = parents("llama")
    hm.merge_to(tmp_path / "plain", folders, batches, **OPTIONS)

    def die(*_):
        raise MemoryError("too large")

    with monkeypatch.context() as patch:
        patch.setattr(folder_merge, "train", die)
        with pytest.raises(MemoryError):
            hm.merge_to(tmp_path / "out", folders, batches, polish=SETTINGS, **OPTIONS)
    monkeypatch.setattr(ShardWriter, "finish", die)
    hm.merge_to(tmp_path / "out", folders, batches, **OPTIONS)
    same_files(tmp_path / "plain", tmp_path / "out")


def test_tied_tensors_are_trained_and_written_as_one(parents, tmp_path):
    _, folders, batches = parents("gpt2")
    hm.merge_to(tmp_path / "plain", folders, batches, progress=False, match="zip")
    hm.merge_to(tmp_path / "out", folders, batches, progress=False, polish=SETTINGS, match="zip")
    model = tf.GPT2LMHeadModel.from_pretrained(tmp_path / "out")
    assert model.lm_head.weight is model.transformer.wte.weight
    before, after = (load_file(tmp_path / d / "model.safetensors") for d in ("plain", "out"))
    assert before.keys() == after.keys()
    assert "lm_head.weight" not in after
    assert not torch.equal(before["transformer.wte.weight"], after["transformer.wte.weight"])


def test_a_forecast_states_the_training(parents):
    _, folders, batches = parents("llama")
    models = [hm.open_checkpoint(folder) for folder in folders]
    calls = [as_call(batch) for batch in batches]
    plain = forecast(models, calls, Options())
    found = forecast(models, calls, Options(), polish=Polish(10))
    assert plain.polish is None
    assert found.polish.state_bytes == 16 * found.parameters
    assert found.polish.activation_bytes > 0
    assert found.flops == plain.flops + found.polish.flops
    twice = forecast(models, calls, Options(), polish=Polish(20)).polish
    once = found.polish.flops
    rest = 2 * once - twice.flops  # the losses before and after
    assert 0 < rest < once
    assert "polish (training): 10 steps of Adam" in found.polish.summary()
    assert f"16 bytes for each of {found.parameters:,} parameters" in found.polish.summary()
