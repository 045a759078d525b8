"""Hugging Face models: merged, saved with a valid configuration, loaded by the library itself."""

import copy
import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from families import pretrained as hf
from torch import nn

import hetmerge as hm
import hetmerge.network
from hetmerge.errors import PlanError
from hetmerge.huggingface import said

tf = pytest.importorskip("transformers")

# family: members, inputs, class that loads it, fields of the merged configuration
CASES = {
    "resnet": (
        [hf.lively(hf.resnet(3, 8), 1), hf.lively(hf.resnet(2, 12), 2)],
        hf.images,
        tf.AutoModelForImageClassification,
        {"embedding_size": 12, "hidden_sizes": [12, 24], "depths": [3, 3]},
    ),
    "vit": (
        [hf.lively(hf.vit(3, 16, 2), 1), hf.lively(hf.vit(2, 24, 3), 2)],
        hf.images,
        tf.AutoModelForImageClassification,
        {"hidden_size": 24, "intermediate_size": 48, "num_attention_heads": 3},
    ),
    "llama": (
        [hf.lively(hf.llama(3, 32, 4, 2), 1), hf.lively(hf.llama(2, 48, 6, 2), 2)],
        hf.tokens,
        tf.AutoModelForCausalLM,
        {"hidden_size": 48, "intermediate_size": 96, "num_attention_heads": 6, "head_dim": 8},
    ),
    "gpt2": (
        [hf.lively(hf.gpt2(3, 16, 2), 1), hf.lively(hf.gpt2(2, 24, 3), 2)],
        hf.tokens,
        tf.AutoModelForCausalLM,
        {"n_embd": 24, "n_head": 3, "n_layer": 3},
    ),
    "bert": (
        [hf.lively(hf.bert(2, 16, 2), 1), hf.lively(hf.bert(2, 24, 3), 2)],
        hf.tokens,
        tf.AutoModelForMaskedLM,
        {"hidden_size": 24, "intermediate_size": 48, "num_attention_heads": 3},
    ),
}


@pytest.fixture(autouse=True)
def _quiet():
    tf.logging.set_verbosity_error()
    tf.logging.disable_progress_bar()


def logits(model: nn.Module, batch) -> torch.Tensor:
    with torch.no_grad():
        found = model(**batch).logits
    mask = batch.get("attention_mask")
    return found if mask is None else found[mask.bool()]


def distance(found: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((found - wanted).abs().max() / wanted.abs().max())


@pytest.mark.parametrize("name", CASES)
def test_merge_save_and_load(name: str, tmp_path: Path) -> None:
    parents, inputs, kind, fields = CASES[name]
    batches = inputs()
    result = hm.merge(parents, batches, progress=False, match="zip")
    found = result.model.config.to_dict()
    assert {key: found[key] for key in fields} == fields
    base = parents[result.plan.base].config.to_dict()
    changed = {key for key, value in found.items() if value != base.get(key)} - {"dtype"}
    assert changed <= fields.keys()
    result.save(tmp_path / "merged")
    files = {p.name for p in (tmp_path / "merged").iterdir()}
    assert {"config.json", "model.safetensors", "plan", "report.json"} <= files
    for again in (kind.from_pretrained(tmp_path / "merged"), hm.load(tmp_path / "merged")):
        assert type(again) is type(parents[0])
        assert torch.equal(logits(again, batches[0]), logits(result.model, batches[0]))


@pytest.mark.parametrize(
    ("name", "kept"),
    [("resnet", 1), ("vit", 1), ("llama", 0), ("llama", 1), ("gpt2", 1), ("bert", 0), ("bert", 1)],
)
def test_weight_of_one_returns_the_parent(name: str, kept: int) -> None:
    parents, inputs, _, _ = CASES[name]
    batches = inputs()
    weights = [1 - kept, kept]
    result = hm.merge(parents, batches, weights=weights, refit=False, progress=False, match="zip")
    assert distance(logits(result.model, batches[0]), logits(parents[kept], batches[0])) < 1e-4


@pytest.mark.parametrize("name", ["vit", "llama", "gpt2"])
def test_merged_with_itself_returns_itself(name: str) -> None:
    parents, inputs, _, _ = CASES[name]
    batches = inputs()
    result = hm.merge([parents[0], parents[0]], batches, progress=False, match="zip")
    assert distance(logits(result.model, batches[0]), logits(parents[0], batches[0])) < 1e-4


def test_deeper_in_another_stage() -> None:
    parents = [hf.lively(hf.resnet(3, 8, 1), 1), hf.lively(hf.resnet(1, 12, 3), 2)]
    batch = hf.images()[0]
    result = hm.merge(
        parents, hf.images(), weights=[1, 0], refit=False, progress=False, match="zip"
    )
    assert result.model.config.depths == [3, 3]
    assert distance(logits(result.model, batch), logits(parents[0], batch)) < 1e-4


def test_units_of_several_widths_in_both_parents_keep_them() -> None:
    sizes = [8, 8, 16, 24, 8]
    blocks = [[[3, a, b, 1, False]] for a, b in itertools.pairwise(sizes)]
    blocks.append([[3, 8, 32, 1, True], [3, 32, 32, 1, True]])
    config = tf.PPLCNetConfig(
        block_configs=blocks, stem_channels=8, class_expand=16, hidden_sizes=[32], num_labels=5
    )
    parents = [hf.lively(tf.PPLCNetForImageClassification(config), seed) for seed in (1, 2)]
    for kept in (0, 1):
        result = hm.merge(
            parents, hf.images(), weights=[1 - kept, kept], refit=False, progress=False, match="zip"
        )
        assert result.model.config.block_configs == parents[0].config.block_configs
        with torch.no_grad():
            found, wanted = (m(**hf.images()[0])[0] for m in (result.model, parents[kept]))
        assert distance(found, wanted) < 1e-4


def test_half_precision_is_kept(tmp_path: Path) -> None:
    parents = [hf.lively(hf.llama(3, 32), 1), hf.lively(hf.llama(2, 48), 2)]
    batch = hf.tokens()[0]
    result = hm.merge([p.bfloat16() for p in parents], hf.tokens(), progress=False, match="zip")
    result.save(tmp_path / "merged")
    again = tf.AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert {p.dtype for p in again.parameters()} == {torch.bfloat16}
    assert torch.equal(logits(again, batch), logits(result.model, batch))


def test_absent_layer_behind_a_norm_is_reported() -> None:
    parents = [hf.lively(hf.bert(3, 16), 1), hf.lively(hf.bert(2, 24, 3), 2)]
    result = hm.merge(
        parents, hf.tokens(), weights=[0, 1], refit=False, progress=False, match="zip"
    )
    assert "passes it by an identity layer, which is not exact here" in result.report.notes[0]
    batch = hf.tokens()[0]
    assert distance(logits(result.model, batch), logits(parents[1], batch)) < 0.3


def test_one_key_value_head_in_both() -> None:
    parents = [hf.lively(hf.llama(3, 32, 4, 1), 1), hf.lively(hf.llama(2, 48, 4, 1), 2)]
    batch = hf.tokens()[0]
    result = hm.merge(
        parents, hf.tokens(), weights=[0, 1], refit=False, progress=False, match="zip"
    )
    assert result.model.config.num_key_value_heads == 1
    assert distance(logits(result.model, batch), logits(parents[1], batch)) < 1e-4


FAST = {"rope_type": "default", "rope_theta": 50.0}


@pytest.mark.parametrize("groups", [(4, 2), (1, 2), (4, 1)])
def test_keys_and_values_are_repeated_where_only_some_are_grouped(groups: tuple[int, int]) -> None:
    parents = [hf.lively(hf.llama(3 - i, 32 + 16 * i, 4, g), i + 1) for i, g in enumerate(groups)]
    batch = hf.tokens()[0]
    result = hm.merge(
        parents, hf.tokens(), weights=[0, 1], refit=False, progress=False, match="zip"
    )
    assert result.model.config.num_key_value_heads == max(max(groups), 2)
    assert f"keys and values of {min(groups)} groups" in result.report.notes[0]
    assert distance(logits(result.model, batch), logits(parents[1], batch)) < 1e-4
    again = hm.apply(result.plan, parents, hf.tokens(), progress=False).model
    assert torch.equal(logits(again, batch), logits(result.model, batch))


def test_rotary_frequencies_that_one_parent_lacks() -> None:
    parents = [
        hf.lively(hf.llama(3, 32, 4, 2, head_dim=16), 1),
        hf.lively(hf.llama(2, 32, 4, 2, head_dim=8, rope_parameters=FAST), 2),
    ]
    result = hm.merge(parents, hf.tokens(), progress=False, match="zip")
    assert result.model.config.head_dim == 16
    (note,) = [note for note in result.report.notes if "constants tell apart" in note]
    assert note.startswith("models[1]: ")
    keys = next(s for s in result.plan.spaces if s.name.endswith("0.self_attn.q_proj:2"))
    first, second = keys.labels
    assert first.tolist() == list(range(8))
    assert second[0] == 0  # the fastest frequency is the same for every base
    lost = int((second < 0).sum())
    assert lost > 0
    assert f"models[1]: {lost} of 4 features" in note


def other_base_in_wider_heads() -> list[Any]:
    return [
        hf.lively(hf.llama(3, 32, 4, 2, head_dim=8), 1),
        hf.lively(hf.llama(2, 32, 4, 2, head_dim=16, rope_parameters=FAST), 2),
    ]


def test_wider_heads_of_another_rotary_base_follow_the_deepest_parent() -> None:
    parents = other_base_in_wider_heads()
    both = hm.merge(parents, hf.tokens(), progress=False, match="zip")
    assert both.model.config.head_dim == 16
    assert both.model.config.rope_parameters == parents[0].config.rope_parameters
    keys = next(s for s in both.plan.spaces if s.name.endswith("0.self_attn.q_proj:2"))
    first, second = keys.labels
    assert first.tolist() == [0, 2, 4, 6]  # every second frequency of heads twice as wide
    assert second[0] == 0
    lost = int((second < 0).sum())
    assert 0 < lost < 8
    (note,) = [note for note in both.report.notes if "constants tell apart" in note]
    assert note.startswith(f"models[1]: {lost} of 8 features")


def test_a_base_parent_without_weight_cannot_set_the_frequencies() -> None:
    parents = other_base_in_wider_heads()
    with pytest.raises(hm.PlanError, match="does not compute the constants"):
        hm.merge(parents, hf.tokens(), weights=[0, 1], refit=False, progress=False, match="zip")


REFUSED = {
    "heads that do not divide the stream": ([hf.gpt2(2, 16, 4), hf.gpt2(2, 24, 2)], hf.tokens),
    "two families": ([hf.gpt2(2, 16, 2), hf.llama(2, 16, 2, 2)], hf.tokens),
}
MESSAGES = {
    "heads that do not divide the stream": "no configuration of GPT2LMHeadModel has the merged",
    "two families": "of one family",
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case: str) -> None:
    parents, inputs = REFUSED[case]
    with pytest.raises((hm.PlanError, hm.AlignmentError)) as caught:
        hm.merge([m.eval() for m in parents], inputs(), progress=False, match="zip")
    assert MESSAGES[case] in str(caught.value)
    assert "\n" not in str(caught.value)


def test_vocabularies_must_be_equal() -> None:
    other = tf.GPT2Config(n_embd=16, n_layer=2, n_head=2, vocab_size=37, n_positions=16)
    parents = [hf.gpt2(2, 16), tf.GPT2LMHeadModel(other).eval()]
    with pytest.raises(hm.PlanError, match=r"models\[0\]: 31, models\[1\]: 37"):
        hm.merge(parents, hf.tokens(), progress=False, match="zip")


@pytest.mark.parametrize("name", CASES)
def test_selection_of_a_model_and_itself_is_that_model(name: str) -> None:
    parents, inputs, _, _ = CASES[name]
    model = copy.deepcopy(parents[1]).double()
    batches = [
        {k: v.double() if v.is_floating_point() else v for k, v in batch.items()}
        for batch in inputs()
    ]
    result = hm.merge([model, model], batches, match="select", refit=False, progress=False)
    batch = batches[0]
    assert distance(logits(result.model, batch), logits(model, batch)) < 1e-7


@pytest.mark.parametrize("name", CASES)
def test_selection_of_different_models(name: str) -> None:
    parents, inputs, _, fields = CASES[name]
    batches = inputs()
    result = hm.merge(parents, batches, match="select", progress=False)
    found = result.model.config.to_dict()
    assert {key: found[key] for key in fields} == fields
    assert bool(torch.isfinite(logits(result.model, batches[0])).all())


@pytest.mark.parametrize(("width", "groups", "stream"), [(1.25, 4, 40), (1.5, 4, 48)])
def test_a_factor_makes_more_groups_and_leaves_heads_as_they_are(
    width: float, groups: int, stream: int
) -> None:
    parents = [hf.lively(hf.llama(3, 32, 4, 2), 1), hf.lively(hf.llama(2, 24, 6, 3), 2)]
    config = hm.merge(parents, hf.tokens(), width=width, progress=False, match="zip").model.config
    sizes = (config.num_key_value_heads, config.num_attention_heads, config.head_dim)
    assert sizes == (groups, 2 * groups, 8)
    assert config.hidden_size == stream


def test_trials_are_made_as_the_merge_is() -> None:
    """With heads that the family needs, at the shape that was asked for, whole or in part."""
    parents = [hf.lively(hf.llama(3, 32, 4, 2), 1), hf.lively(hf.llama(2, 48, 6, 2), 2)]
    wide = hm.merge(parents, hf.tokens(), width="union", progress=False)
    assert list(wide.plan.trials) == ["permute", "zip", "pca"]
    assert any("the family allows no other number" in note for note in wide.plan.notes)
    with pytest.raises(hm.PlanError, match="^architecture: "):
        hm.plan(parents, hf.tokens(), architecture={"hidden_size": 64}, progress=False)
    partial = hm.plan(parents, hf.tokens(), stop_at=1, progress=False)
    assert list(partial.trials) == ["permute", "zip", "select"]


@pytest.mark.parametrize("widths", [(32, 32), (32, 48)])
def test_a_merge_of_the_bases_sizes_is_not_traced_again(monkeypatch, widths) -> None:
    models = [hf.lively(hf.llama(3 - i, w, 4, 2), i) for i, w in enumerate(widths)]
    plan = hm.plan(models, hf.tokens(), match="permute", progress=False)
    traced, export = [], hetmerge.network.export
    monkeypatch.setattr(
        "hetmerge.network.export", lambda *a, **k: (traced.append(0), export(*a, **k))[1]
    )
    merged = hm.apply(plan, models, hf.tokens(), refit=False, progress=False).model
    assert len(traced) == (2 if widths[0] == widths[1] else 3)  # the parents, and the merge
    assert merged.config.hidden_size == widths[1]


def test_a_configuration_that_differs_from_layer_to_layer_says_nothing() -> None:
    class Configuration:
        one = 3

        @property
        def other(self) -> int:
            raise RuntimeError("differs from layer to layer")

    assert [said(Configuration(), name) for name in ("one", "other", "none")] == [3, None, None]


def test_positions_in_a_stream_of_another_width_are_refused() -> None:
    """Sinusoids of a narrower stream are not among those of a wider one, and layers read them."""
    sizes = {"vocab_size": 31, "num_layers": 1, "attention_heads": 2, "max_position_embeddings": 32}
    parents = [
        tf.XGLMForCausalLM(tf.XGLMConfig(d_model=width, ffn_dim=32, **sizes)) for width in (16, 24)
    ]
    with pytest.raises(PlanError, match="must keep its order") as caught:
        hm.plan(parents, hf.tokens(), match="zip", progress=False)
    assert "models[0]: 16, models[1]: 24" in str(caught.value)
