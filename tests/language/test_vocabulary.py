"""Vocabularies as a partition: rows by token, merges that return a parent, united tokenizers."""

from typing import Any

import pytest
import torch
from language_models import bert, byte_level, llama, unigram, wordpiece
from torch import Tensor, nn

import hetmerge as hm
from hetmerge.network import Network
from hetmerge.tokens import counterparts, tokens_of
from hetmerge.vocabulary import (
    Vocabulary,
    base_vocabulary,
    embedding_rows,
    united_vocabulary,
    vocabulary_spaces,
)

MAKE = {"byte level": byte_level, "unigram": unigram, "wordpiece": wordpiece}


def size_of(tokenizer: Any) -> int:
    return max(tokenizer.get_vocab().values()) + 1


def batches(rows: int) -> list[dict[str, Tensor]]:
    random = torch.Generator().manual_seed(0)
    return [{"input_ids": torch.randint(0, rows, (6, 7), generator=random)}]


def logits(model: nn.Module, ids: Tensor) -> Tensor:
    with torch.no_grad():
        return model(input_ids=ids).logits


def test_base_keeps_its_rows() -> None:
    tokenizers = [byte_level(), byte_level(300)]
    rows = [size_of(tokenizers[0]) + 5, size_of(tokenizers[1]) + 3]
    found = base_vocabulary(tokenizers, rows, 0)
    assert found.width == rows[0]
    assert found.labels[0].tolist() == list(range(rows[0]))
    ids = [tokenizer.get_vocab() for tokenizer in tokenizers]
    for token, i in ids[1].items():
        assert found.labels[1][i] == ids[0].get(token, -1)
    padding = found.labels[1][size_of(tokenizers[1]) :]
    assert padding.tolist() == [size_of(tokenizers[0]) + k for k in range(3)]


def test_more_padding_than_the_base_has_is_left_out() -> None:
    tokenizers = [byte_level(), byte_level()]
    n = size_of(tokenizers[0])
    found = base_vocabulary(tokenizers, [n + 1, n + 3], 0)
    assert found.labels[1][n:].tolist() == [n, -1, -1]
    united, tokenizer = united_vocabulary(tokenizers, [n + 1, n + 3], 0)
    assert united.width == n + 3
    assert united.labels[1].tolist() == list(range(n + 3))
    assert len(tokenizer) == len(tokenizers[0])


def test_a_tokenizer_with_more_tokens_than_the_model_has_rows() -> None:
    tokenizers = [byte_level(), byte_level()]
    rows = [size_of(tokenizers[0]) - 2, size_of(tokenizers[1])]
    for found in (base_vocabulary(tokenizers, rows, 0), united_vocabulary(tokenizers, rows, 1)[0]):
        assert [len(labels) for labels in found.labels] == rows
        assert all(labels.max() < found.width for labels in found.labels)


@pytest.mark.parametrize(
    "kinds", [("byte level", "unigram"), ("unigram", "wordpiece", "byte level")]
)
def test_the_union_has_every_token_that_is_text(kinds: tuple[str, ...]) -> None:
    tokenizers = [MAKE[kind]() for kind in kinds]
    rows = [size_of(tokenizer) + 2 for tokenizer in tokenizers]
    found, united = united_vocabulary(tokenizers, rows, 0)
    merged = tokens_of(united)
    base = tokens_of(tokenizers[0])
    assert all(merged.ids[name] == i for name, i in base.ids.items())
    for tokenizer, labels in zip(tokenizers, found.labels, strict=True):
        tokens = tokens_of(tokenizer)
        assert labels[labels >= 0].unique().numel() == (labels >= 0).sum()
        for (kind, content), i in tokens.ids.items():
            if labels[i] < 0:
                text = content.decode(errors="replace")
                assert kind == "byte" or "\ufffd" in text or text in base.literals, content
            elif kind == "text" and int(labels[i]) not in base.ids.values():
                assert united.convert_ids_to_tokens(int(labels[i])) == content.decode()
    seen = torch.cat(found.labels)
    assert seen.max() < found.width
    assert set(range(found.width)) == set(seen[seen >= 0].tolist())


def test_added_tokens_are_found_whole_and_decode_back() -> None:
    tokenizers = [byte_level(), byte_level(text="zyxgy plumbus " * 50)]
    found, united = united_vocabulary(tokenizers, [size_of(t) for t in tokenizers], 0)
    (i,) = united(" plumbus", add_special_tokens=False)["input_ids"]
    assert i == found.labels[1][tokenizers[1].get_vocab()["Ġplumbus"]]
    assert united.decode(united("a plumbus, quickly")["input_ids"]) == "a plumbus, quickly"
    plain = "The quick brown fox"
    assert united(plain)["input_ids"] == tokenizers[0](plain)["input_ids"]
    assert " plumbus" not in tokenizers[0].get_vocab()  # the parent's own is not changed


def test_spaces_of_tied_and_untied_models() -> None:
    call = ((), {"input_ids": torch.arange(8)[None]})
    for model, count in ((llama(40), 2), (llama(40, tied=True), 1), (bert(40), 1)):
        network = Network(model, call, "model")
        found = vocabulary_spaces(network)
        assert len(found) == count
        assert {network.graph.spaces[k].size for k in found} == {40}
    assert vocabulary_spaces(Network(nn.Linear(3, 3), ((torch.ones(2, 3),), {}), "m")) == set()
    assert embedding_rows(llama(40)) == 40
    with pytest.raises(hm.InputError, match="Linear: has no embedding"):
        embedding_rows(nn.Linear(2, 2))


CASES = {
    "llama, base": (llama, "byte level", "unigram", 1),
    "llama, union": (llama, "byte level", "unigram", 1),
    "tied llama, union": (lambda rows: llama(rows, tied=True), "byte level", "unigram", 0),
    "bert, base": (bert, "wordpiece", "byte level", 1),
}


@pytest.mark.parametrize("name", CASES)
def test_all_weight_on_one_parent_returns_its_function(name: str) -> None:
    """Also where the merged rows are another parent's: on the tokens that both have."""
    make, *kinds, kept = CASES[name]
    tokenizers = [MAKE[kind]() for kind in kinds]
    rows = [size_of(tokenizer) + 3 for tokenizer in tokenizers]
    models = [make(count) for count in rows]
    union, base = united_vocabulary(tokenizers, rows, 0)[0], base_vocabulary(tokenizers, rows, 0)
    vocabulary = union if name.endswith("union") else base
    result = hm.merge(
        models,
        batches(min(rows)),
        vocabulary=vocabulary,
        weights=[1 - kept, kept],
        match="permute",
        refit=False,
        progress=False,
    )
    assert result.model.config.vocab_size == vocabulary.width
    assert result.model.get_input_embeddings().weight.shape[0] == vocabulary.width
    labels = vocabulary.labels[kept]
    mine = (labels >= 0).nonzero().flatten()
    ids = mine[torch.randint(0, len(mine), (3, 7), generator=torch.Generator().manual_seed(1))]
    wanted = logits(models[kept], ids)[..., mine]
    found = logits(result.model, labels[ids])[..., labels[mine]]
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-4)
    assert vocabulary.note in result.report.notes


@pytest.mark.parametrize("tied", [False, True])
def test_shuffled_rows_are_the_same_model(tied: bool) -> None:
    """A parent and its copy under another order of the same tokens: their merge is the parent."""
    tokenizer = byte_level()
    rows = size_of(tokenizer)
    order = torch.randperm(rows, generator=torch.Generator().manual_seed(3))
    first, second = llama(rows, tied=tied).double(), llama(rows, tied=tied).double()
    state = {
        name: tensor[order] if "embed" in name or "lm_head" in name else tensor
        for name, tensor in first.state_dict().items()
    }
    second.load_state_dict(state)
    vocabulary = Vocabulary(rows, (torch.arange(rows), order), "the same tokens")
    ids = batches(rows)[0]["input_ids"]
    result = hm.merge(
        [first, second],
        batches(rows),
        vocabulary=vocabulary,
        match="identity",
        refit=False,
        progress=False,
    )
    torch.testing.assert_close(logits(result.model, ids), logits(first, ids), atol=1e-9, rtol=0)


def test_rows_of_one_parent_alone_are_not_halved() -> None:
    tokenizers = [byte_level(), unigram()]
    rows = [size_of(tokenizer) for tokenizer in tokenizers]
    models = [llama(count, hidden=16) for count in rows]
    vocabulary, _ = united_vocabulary(tokenizers, rows, 0)
    result = hm.merge(
        models, batches(min(rows)), vocabulary=vocabulary, match="identity", refit=False,
        progress=False,
    )  # fmt: skip
    merged = result.model.get_input_embeddings().weight
    theirs = [model.get_input_embeddings().weight for model in models]
    both = counterparts(tokens_of(tokenizers[1]), tokens_of(tokenizers[0]))
    for i in tokens_of(tokenizers[1]).ids.values():
        row = int(vocabulary.labels[1][i])
        if i in both:
            wanted = (theirs[0][both[i]] + theirs[1][i]) / 2
            torch.testing.assert_close(merged[both[i]], wanted)
        elif row >= 0:
            assert torch.equal(merged[row], theirs[1][i])


def test_refit_keeps_the_scale_of_logits() -> None:
    """Of a head some of whose tokens one parent lacks: with all weight on one, its function."""
    tokenizers = [byte_level(), unigram()]
    rows = [size_of(tokenizer) for tokenizer in tokenizers]
    model = llama(rows[0])
    vocabulary = base_vocabulary(tokenizers, rows, 0)
    random = torch.Generator().manual_seed(0)
    data = [
        {"input_ids": torch.randint(0, min(rows), (32, 12), generator=random)} for _ in range(4)
    ]
    result = hm.merge(
        [model, llama(rows[1])],
        data,
        vocabulary=vocabulary,
        weights=[1, 0],
        match="auto",
        progress=False,
    )
    ids = data[0]["input_ids"][:4]
    wanted = logits(model, ids)
    error = (logits(result.model, ids) - wanted).norm() / wanted.norm()
    assert error < 0.05  # of standardised logits it would be their scale, about 0.2 here
    assert all(explained > 0.95 for explained in result.plan.trials.values())
    assert len(result.plan.trials) == 3


def test_without_a_vocabulary_rows_must_agree() -> None:
    with pytest.raises(hm.PlanError, match="differs? in size"):
        hm.merge([llama(40), llama(48)], batches(40), progress=False, match="zip")


def test_a_vocabulary_for_other_models_is_refused() -> None:
    vocabulary = Vocabulary(40, (torch.arange(40), torch.arange(40)), "")
    with pytest.raises(hm.InputError, match=r"models\[1\] has 48 rows .* made for 40"):
        hm.merge(
            [llama(40), llama(48)], batches(40), vocabulary=vocabulary, progress=False, match="zip"
        )


def test_a_plan_holds_the_vocabulary(tmp_path) -> None:
    tokenizers = [byte_level(), unigram()]
    rows = [size_of(tokenizer) for tokenizer in tokenizers]
    models = [llama(count) for count in rows]
    vocabulary = base_vocabulary(tokenizers, rows, 0)
    data = batches(min(rows))
    plan = hm.plan(models, data, vocabulary=vocabulary, refit=False, progress=False, match="zip")
    plan.save(tmp_path / "plan")
    again = hm.apply(hm.AlignmentPlan.load(tmp_path / "plan"), models, data, progress=False)
    once = hm.merge(models, data, vocabulary=vocabulary, refit=False, progress=False, match="zip")
    ids = data[0]["input_ids"]
    assert torch.equal(logits(again.model, ids), logits(once.model, ids))
