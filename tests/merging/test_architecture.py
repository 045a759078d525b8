"""The shape of the merged model as its user names it."""

import pytest
import torch
from families.plain import perceptron

import hetmerge as hm

tf = pytest.importorskip("transformers")
from families import pretrained as hf  # noqa: E402


def llamas(**more):
    return [hf.lively(hf.llama(3, 32, 4, 2, **more), 1), hf.lively(hf.llama(2, 48, 6, 3), 2)]


WANTED = {
    "wider": {"hidden_size": 60, "intermediate_size": 128},
    "narrower": {"hidden_size": 42, "intermediate_size": 72},
    "more heads": {"num_attention_heads": 8, "num_key_value_heads": 4},
    "one number": {"intermediate_size": 100},
}


@pytest.mark.parametrize("case", WANTED)
def test_numbers_of_the_configuration_are_reached(case: str) -> None:
    base = {"hidden_size": 48, "intermediate_size": 96, "num_attention_heads": 6}
    fields = {**base, "num_key_value_heads": 3, **WANTED[case]}
    result = hm.merge(llamas(), hf.tokens(), architecture=fields, progress=False, match="zip")
    config = result.model.config
    assert {name: getattr(config, name) for name in fields} == fields
    assert config.head_dim == 8
    with torch.no_grad():
        assert result.model(**hf.tokens()[0]).logits.isfinite().all()
    again = hm.apply(result.plan, llamas(), hf.tokens(), progress=False)
    assert again.model.config.to_dict() == config.to_dict()


def test_what_is_not_named_is_the_deepest_parents() -> None:
    parents = [hf.lively(hf.llama(3, 48, 6, 3), 1), hf.lively(hf.llama(2, 32, 4, 2), 2)]
    merged = hm.merge(
        parents, hf.tokens(), architecture={"hidden_size": 60}, progress=False, match="zip"
    ).model
    assert merged.config.hidden_size == 60
    mine, base = merged.config.to_dict(), parents[0].config.to_dict()
    assert {k for k in base if mine[k] != base[k]} == {"hidden_size", "dtype"}


def test_fewer_heads_than_the_widest_parent() -> None:
    fields = {"hidden_size": 32, "num_attention_heads": 4, "num_key_value_heads": 2}
    merge = {"architecture": fields, "progress": False}
    merged = hm.merge(llamas(), hf.tokens(), match="pca", **merge).model
    assert {name: getattr(merged.config, name) for name in fields} == fields
    with pytest.raises(hm.PlanError, match="fewer only with match='pca'"):
        hm.plan(llamas(), hf.tokens(), match="zip", **merge)


def test_numbers_that_follow_from_others_can_be_named() -> None:
    parents = [hf.lively(hf.gpt2(2, 16), 1), hf.lively(hf.gpt2(2, 16), 2)]
    assert parents[0].config.n_inner is None
    merged = hm.merge(
        parents, hf.tokens(), architecture={"n_inner": 80}, progress=False, match="zip"
    ).model
    assert merged.config.n_inner == 80
    assert merged.transformer.h[0].mlp.c_fc.weight.shape == (16, 80)


def test_union_as_an_architecture_is_the_union() -> None:
    parents = [hf.lively(hf.gpt2(2, 16), 1).double(), hf.lively(hf.gpt2(2, 16), 2).double()]
    fields = {"n_embd": 32, "n_head": 4}
    merged = hm.merge(
        parents, hf.tokens(), architecture=fields, refit=False, progress=False, match="zip"
    ).model
    wanted = hm.merge(
        parents, hf.tokens(), width="union", refit=False, progress=False, match="zip"
    ).model
    batch = {"input_ids": hf.tokens()[0]["input_ids"]}
    with torch.no_grad():
        assert torch.equal(merged(**batch).logits, wanted(**batch).logits)


REFUSED = {
    "unknown": ({"hiden_size": 48}, "'hiden_size' is no whole number of a LlamaForCausalLM"),
    "vocabulary": ({"vocab_size": 50}, r"needs 'model.embed_tokens.weight' to be \[50, 32\]"),
    "depth": (
        {"num_hidden_layers": 5},
        "'model.layers.3.*, the merge of these parents makes it ab",
    ),
    "too wide": ({"hidden_size": 120}, "120 wide; allowed: what the parents have together, 80"),
    "fewer heads": ({"hidden_size": 48}, "heads are as many as in the parent with most or more"),
    "impossible": ({"num_attention_heads": 5}, r"cannot be .'num_attention_heads': 5. \("),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case: str) -> None:
    fields, message = REFUSED[case]
    with pytest.raises(hm.PlanError, match=message) as caught:
        hm.plan(llamas(), hf.tokens(), architecture=fields, progress=False, match="zip")
    assert "\n" not in str(caught.value)


def test_only_for_transformers_models(make) -> None:
    parents = [make(perceptron, [8]), make(perceptron, [12])]
    with pytest.raises(hm.PlanError, match="allowed for transformers models"):
        hm.plan(
            parents,
            [torch.randn(20, 6).double()] * 2,
            architecture={"a": 3},
            progress=False,
            match="zip",
        )


@pytest.mark.parametrize("value", [{}, {"a": 0}, {"a": "b"}, 7, {"a": True}])
def test_not_numbers_by_name(value: object) -> None:
    with pytest.raises(hm.InputError, match="architecture: got .*; allowed: names of whole"):
        hm.plan(llamas(), hf.tokens(), architecture=value, progress=False, match="zip")


def test_beside_another_dial() -> None:
    with pytest.raises(hm.InputError, match="beside width=1.5"):
        hm.plan(
            llamas(),
            hf.tokens(),
            architecture={"hidden_size": 48},
            width=1.5,
            progress=False,
            match="zip",
        )
