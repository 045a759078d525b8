"""What a forecast says beside what the merge then makes."""

import json

import pytest
import torch

import hetmerge as hm
from hetmerge.batches import as_call
from hetmerge.forecast import forecast
from hetmerge.maps_cost import largest_map, maps_bytes, maps_flops
from hetmerge.options import Options
from hetmerge.planning import setting_of
from hetmerge.shards import Stored

tf = pytest.importorskip("transformers")


MLPS = [f"model.layers.{i}.mlp.gate_proj" for i in range(3)]


@pytest.mark.parametrize(
    ("family", "options"),
    [
        ("llama", {"match": "zip", "width": {"model.layers.0.mlp.gate_proj": 0.5}}),
        ("heads", {"match": "zip", "width": 1.5}),
        ("llama", {"match": "pca", "importance": "weights"}),
        ("gpt2", {"architecture": {"n_embd": 32, "n_head": 4}}),
        ("llama", {"match": "select", "width": dict.fromkeys(MLPS, 48)}),
        ("gpt2", {"match": "permute"}),
        ("vit", {"match": "select", "importance": "weights", "refit": False}),
    ],
)
def test_a_forecast_is_what_the_merge_makes(parents, tmp_path, monkeypatch, family, options):
    _, folders, batches = parents(family)

    def none(*_):
        raise AssertionError("a weight was read")

    with monkeypatch.context() as patch:
        patch.setattr(Stored, "read", none)
        models = [hm.open_checkpoint(folder) for folder in folders]
        calls = [as_call({k: torch.zeros_like(v) for k, v in b.items()}) for b in batches]
        found = forecast(models, calls, Options.make(options))
    # Where units stand is not known without activations: here they are spread as the forecast does.
    options = {**options, "depth": "uniform"}
    result = hm.merge_to(tmp_path / "out", folders, batches, progress=False, **options)
    assert found.model == type(result.model).__name__
    assert found.parameters == result.report.merged_parameters
    assert found.bytes == 4 * found.parameters
    assert {name: width for name, (_, width) in found.widths.items()} == {
        space.name: space.width for space in result.report.spaces
    }
    assert {name: sizes for name, (sizes, _) in found.widths.items()} == {
        space.name: space.sizes for space in result.report.spaces
    }
    config = tf.AutoConfig.from_pretrained(tmp_path / "out").to_dict()
    assert found.changed
    assert all(config[name] == value for name, value in found.changed.items() if name != "dtype")
    stored = {place for model in models for place in model.state.stored.values()}
    assert len(stored) == 2 * found.merged + found.copied
    assert min(found.planning_bytes, found.applying_bytes, found.flops) > 0
    assert found.peak_bytes > found.process_bytes
    json.dumps(found.to_dict())


@pytest.mark.parametrize(
    ("match", "missing"), [("zip", "zero"), ("zip", "repeat"), ("select", "zero"), ("pca", "zero")]
)
def test_more_layers_take_no_more_memory(tmp_path, match, missing):
    peaks = []
    for depth in (4, 8):
        folders = []
        for m, width in enumerate((128, 64)):
            config = tf.LlamaConfig(
                vocab_size=32,
                hidden_size=width,
                intermediate_size=4 * width,
                num_hidden_layers=depth // (1 + m),
                num_attention_heads=4,
                num_key_value_heads=2,
                head_dim=16,
            )
            folders.append(tmp_path / f"{depth}-{m}")
            tf.LlamaForCausalLM(config).save_pretrained(folders[-1])
        models = [hm.open_checkpoint(folder) for folder in folders]
        call = as_call({"input_ids": torch.zeros(4, 64, dtype=torch.int64)})
        peaks.append(forecast(models, [call, call], Options(match=match, missing=missing)))
    assert peaks[1].planning_bytes == pytest.approx(peaks[0].planning_bytes, rel=0.02)
    assert peaks[1].applying_bytes == pytest.approx(peaks[0].applying_bytes, rel=0.02)
    assert peaks[1].flops > 1.8 * peaks[0].flops


@pytest.mark.parametrize("match", ["select", "pca"])
def test_maps_are_counted(parents, match):
    """What a selection drops is read off by a dense map, which is on the disk when it is made."""
    _, folders, batches = parents("llama")
    models = [hm.open_checkpoint(folder) for folder in folders]
    plan = hm.plan(models, batches, match=match, progress=False)
    reads = [sum(x.numel() * 4 for x in s.readoff.values()) for s in plan.spaces if not s.writes]
    setting, _ = setting_of(plan, models)
    assert 0 < sum(reads) <= maps_bytes(setting, match) < 2 * sum(reads)
    assert max(reads) <= largest_map(setting, match)
    assert maps_bytes(setting, "zip") == largest_map(setting, "zip") == 0
    assert all(x.dtype == torch.float32 for s in plan.spaces for x in s.readoff.values())
    calls = [as_call(batch) for batch in batches]
    told, plain = (forecast(models, calls, Options(match=name)) for name in (match, "zip"))
    assert told.maps_bytes == maps_bytes(setting, match)
    sizes = [[len(x) for x in s.labels] for s in plan.spaces if s.readoff]
    tokens = sum(batch["input_ids"].numel() for batch in batches)
    least = sum(3 * min(max(own), tokens) * sum(own) ** 2 for own in sizes)
    most = sum(3 * max(own) * sum(own) ** 2 + 3 * sum(own) ** 3 for own in sizes)
    assert least < told.flops - plain.flops == maps_flops(setting, match, calls) < 2 * most


@pytest.mark.parametrize(("match", "factor"), [("zip", 0.8), ("auto", 1.2)])
def test_within_a_budget(parents, monkeypatch, match, factor):
    """Widths that calibration will choose are foreseen, and moments gathered twice."""
    _, folders, batches = parents("llama")
    models = [hm.open_checkpoint(folder) for folder in folders]
    monkeypatch.setattr(Stored, "read", lambda *_: pytest.fail("a weight was read"))
    calls = [as_call(batch) for batch in batches]
    even = forecast(models, calls, Options.make({"match": match}))
    limit = round(factor * even.parameters)
    options = Options.make({"match": match, "budget": {"parameters": limit}})
    found = forecast(models, calls, options)
    assert 0.9 * limit < found.parameters <= limit
    assert f"budget: {limit:,} parameters; calibration chooses the widths" in found.notes[0]
    assert found.flops > factor * even.flops
    assert found.planning_bytes >= even.planning_bytes
    with pytest.raises(hm.InputError, match="budget: got 9 parameters; allowed: "):
        forecast(models, calls, Options.make({"match": match, "budget": {"parameters": 9}}))
