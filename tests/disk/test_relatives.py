"""Parents of several families, stated in one of them."""

import pytest
import torch
from family_models import GROUPED, inputs
from torch import nn

import hetmerge as hm
from hetmerge.relatives import relatives

tf = pytest.importorskip("transformers")
from families import pretrained as hf  # noqa: E402

# Families, and the class that states both.
PAIRS = {
    ("llama", "qwen2"): "Qwen2ForCausalLM",
    ("qwen2", "llama"): "Qwen2ForCausalLM",
    ("phi3", "llama"): "LlamaForCausalLM",
    ("qwen2", "phi3"): "Qwen2ForCausalLM",
    ("full mistral", "qwen2"): "Qwen2ForCausalLM",
    ("full mistral", "llama"): "MistralForCausalLM",
}


def model_of(family: str, layers: int, width: int, heads: int) -> nn.Module:
    model = GROUPED[family.removeprefix("full ")](layers, width, heads, 2)
    if family.startswith("full "):
        model.config.sliding_window = None
        model = type(model)(model.config)
    return hf.lively(model, layers).float()


def parents_of(pair: tuple[str, str]) -> list[nn.Module]:
    return [model_of(pair[0], 3, 32, 4), model_of(pair[1], 2, 48, 6)]


def logits(model: nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    with torch.no_grad():
        return model(**batch).logits


@pytest.mark.parametrize("pair", PAIRS)
def test_another_class_states_the_same_function(pair: tuple[str, str]) -> None:
    parents, batch = parents_of(pair), inputs("llama")[0]
    for model, stated in zip(parents, relatives(parents).models, strict=True):
        assert type(stated).__name__ == PAIRS[pair]
        assert torch.allclose(logits(model, batch), logits(stated, batch), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("pair", [("llama", "qwen2"), ("phi3", "llama")])
def test_families_merge_in_memory_and_from_disk(pair: tuple[str, str], tmp_path) -> None:
    parents, batches = parents_of(pair), inputs("llama")
    folders = []
    for i, model in enumerate(parents):
        folders.append(tmp_path / str(i))
        model.save_pretrained(folders[-1])
    wanted = hm.merge(parents, batches, progress=False, match="zip")
    hm.merge_to(tmp_path / "out", folders, batches, progress=False, match="zip")
    found = tf.AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    assert type(found).__name__ == type(wanted.model).__name__ == PAIRS[pair]
    assert torch.equal(logits(found, batches[0]), logits(wanted.model, batches[0]))
    assert "which computes the same" in wanted.report.notes[0]


def test_the_function_of_one_family_in_the_shape_of_two() -> None:
    parents, batches = parents_of(("llama", "qwen2")), inputs("llama")
    result = hm.merge(parents, batches, weights=[0, 1], refit=False, progress=False, match="zip")
    apart = (logits(result.model, batches[0]) - logits(parents[1], batches[0])).abs().max()
    assert apart < 1e-3 * logits(parents[1], batches[0]).std()


def test_heads_of_a_class_that_does_not_declare_their_size(tmp_path) -> None:
    sizes = {"vocab_size": 40, "max_position_embeddings": 64, "intermediate_size": 64}
    first = {"hidden_size": 32, "num_attention_heads": 4, "num_key_value_heads": 2}
    other = {"hidden_size": 24, "num_attention_heads": 6, "num_key_value_heads": 3, "head_dim": 8}
    parents = [
        tf.Qwen2ForCausalLM(tf.Qwen2Config(num_hidden_layers=3, **sizes, **first)),
        tf.LlamaForCausalLM(tf.LlamaConfig(num_hidden_layers=2, **sizes, **other)),
    ]
    parents = [hf.lively(model, 1).float() for model in parents]
    merged = hm.merge(parents, inputs("llama"), progress=False, match="zip").model
    config = merged.config
    assert (config.num_attention_heads, config.hidden_size, config.head_dim) == (6, 32, 8)
    merged.save_pretrained(tmp_path / "out")
    again = tf.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    batch = inputs("llama")[0]
    assert torch.equal(logits(again, batch), logits(merged, batch))


def test_sliding_windows_are_not_stated_without_them() -> None:
    parents = parents_of(("mistral", "qwen2"))
    assert [type(m) for m in relatives(parents).models] == [type(m) for m in parents]
    with pytest.raises(hm.AlignmentError, match="bias' has no place in the merged network"):
        hm.merge(parents, inputs("llama"), progress=False, match="zip")


def test_classes_that_make_something_else_of_the_same_tensors() -> None:
    config = {"vocab_size": 40, "hidden_size": 32, "intermediate_size": 64, "head_dim": 8}
    config |= {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    gemma = tf.GemmaForCausalLM(tf.GemmaConfig(**config)).eval()
    llama = tf.LlamaForCausalLM(tf.LlamaConfig(**config, tie_word_embeddings=True)).eval()
    assert {n for n, _ in gemma.named_parameters()} == {n for n, _ in llama.named_parameters()}
    with pytest.raises(hm.AlignmentError, match="GemmaForCausalLM, LlamaForCausalLM have tensors"):
        hm.merge([gemma, llama], inputs("llama"), progress=False, match="zip")


def test_what_configurations_say_differently_is_reported() -> None:
    parents = parents_of(("mistral", "llama"))
    plan = hm.plan(parents, inputs("llama"), progress=False, match="zip")
    assert plan.notes[0].startswith("models[1]: LlamaForCausalLM is stated as MistralForCausalLM")
    assert plan.notes[1].startswith(
        "the parents' configurations differ in sliding_window (4096, No"
    )
    assert plan.notes[1].endswith("the merged model has those of models[0]")


@pytest.mark.parametrize(("tied", "match"), [(1, "zip"), (0, "pca")])
def test_tied_beside_untied(tmp_path, tied: int, match: str) -> None:
    """A parent and what it becomes with the other's weight 0, in memory and from disk."""
    parents = [
        hf.lively(hf.llama(3, 32, 4, 2, tie_word_embeddings=tied == 0), 1).float(),
        hf.lively(hf.llama(2, 48, 6, 2, tie_word_embeddings=tied == 1), 2).float(),
    ]
    batches = hf.tokens()
    for i, model in enumerate(parents):
        model.save_pretrained(tmp_path / str(i))
    for heard in (0, 1):
        options = {"match": match, "weights": [1 - heard, heard], "refit": False}
        here = hm.merge(parents, batches, progress=False, **options)
        assert "tied tensors, such as 'lm_head.weight', are taken as two" in here.report.notes[0]
        out = tmp_path / f"out{heard}"
        folders = [tmp_path / "0", tmp_path / "1"]
        hm.merge_to(out, folders, batches, progress=False, **options)
        there = tf.AutoModelForCausalLM.from_pretrained(out).eval()
        assert there.config.tie_word_embeddings is False
        wanted = logits(parents[heard], batches[0])
        for model in (here.model, there):
            apart = (logits(model, batches[0]) - wanted).abs().max()
            assert apart < 1e-3 * wanted.std()


def test_untying_leaves_a_parent_as_it_was() -> None:
    tied, free = (hf.llama(2, 32, 4, 2, tie_word_embeddings=t) for t in (True, False))
    stated = relatives([tied, free]).models[0]
    with torch.no_grad():
        stated.lm_head.weight.zero_()
    assert bool(tied.lm_head.weight.any())
    assert bool(stated.get_input_embeddings().weight.any())
