"""The reading half of a merge: policies for tokenizers, lengths, and inputs of each parent."""

from pathlib import Path
from typing import Any

import pytest
import torch
from language_models import TEXT, bert, byte_level, llama, unigram, wordpiece

from hetmerge.config import MergeConfig
from hetmerge.errors import CheckpointError, InputError
from hetmerge.language import positions_of
from hetmerge.reading import (
    calibration_batches,
    evaluation_windows,
    find_parents,
    load_parents,
)
from hetmerge.vocabulary import embedding_rows
from hetmerge.windows import Windows

MAKE = {"gpt": byte_level, "gpt2": byte_level, "pieces": unigram, "bert": wordpiece}


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name, make in MAKE.items():
        tokenizer = make()
        rows = max(tokenizer.get_vocab().values()) + (3 if name == "gpt2" else 1)
        ids = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
        model = bert(rows) if name == "bert" else llama(rows, **ids)
        model.save_pretrained(name)
        tokenizer.save_pretrained(name)
    Path("text.txt").write_text(TEXT * 8, encoding="utf-8")
    Path("held.txt").write_text(TEXT[::-1] * 8, encoding="utf-8")
    return tmp_path


def config(*names: str, **changes: Any) -> MergeConfig:
    text = {"path": "text.txt", "tokens": 128, "sequence_length": 32}
    return MergeConfig.model_validate(
        {
            "models": [{"model": name} for name in names],
            "calibration": {**text, **changes.pop("calibration", {})},
            **changes,
        }
    )


HELD = {"path": "held.txt", "tokens": 128, "sequence_length": 32}


def test_one_tokenizer_needs_no_policy(folders: Path) -> None:
    settings = config("gpt", "gpt2", evaluation=HELD)
    parents = find_parents(settings)
    language = parents.language
    assert language is not None
    assert language.shared
    rows = [embedding_rows(model) for model in load_parents(settings, parents)]
    assert rows[1] == rows[0] + 2  # padding, which needs a vocabulary but no policy
    vocabulary, tokenizer = language.vocabulary(rows)
    assert vocabulary is not None
    assert vocabulary.width == rows[0]
    assert vocabulary.labels[1].tolist() == [*range(rows[0]), -1, -1]
    assert tokenizer is language.tokenizers[0]
    assert language.vocabulary([rows[0], rows[0]]) == (None, tokenizer)
    (batch,) = calibration_batches(settings, language, tokenizer)
    assert batch["input_ids"].shape == (4, 32)
    (held,) = evaluation_windows(settings, language, tokenizer)
    assert len(held.inputs) == 3
    assert torch.equal(held.inputs[0]["input_ids"], held.inputs[2]["input_ids"])
    assert evaluation_windows(config("gpt", "gpt2"), language, tokenizer) == []
    assert parents.described(settings) == [
        {"name": "gpt", "revision": None, "sha": None},
        {"name": "gpt2", "revision": None, "sha": None},
    ]


def test_different_tokenizers_need_a_policy(folders: Path) -> None:
    with pytest.raises(InputError) as caught:
        find_parents(config("gpt", "gpt2", "pieces"))
    message = str(caught.value)
    for part in ("gpt (330 tokens)", "pieces (", "'base'", "'union'", "the name of a model"):
        assert part in message


@pytest.mark.parametrize(
    ("source", "index"), [("base", 0), ("union", 0), ("gpt", 0), ("pieces", 1)]
)
def test_policies(folders: Path, source: str, index: int) -> None:
    settings = config("gpt", "pieces", tokenizer={"source": source}, evaluation=HELD)
    parents = find_parents(settings)
    language = parents.language
    assert language is not None
    models = load_parents(settings, parents)
    language.adopt_ids([model.config for model in models])
    own = language.tokenizers[index]
    assert {model.config.eos_token_id for model in models} == {own.eos_token_id}
    rows = [embedding_rows(model) for model in models]
    vocabulary, tokenizer = language.vocabulary(rows)
    assert vocabulary is not None
    if source == "union":
        assert len(tokenizer) == vocabulary.width > rows[0]
    else:
        assert tokenizer is own
        assert vocabulary.width == rows[index]
    (batch,) = calibration_batches(settings, language, tokenizer)
    assert isinstance(batch, Windows)
    assert len(batch.inputs) == 3
    for model, inputs, shared in zip(models, batch.inputs[:2], batch.shared[:2], strict=True):
        with torch.no_grad():
            assert model(**inputs).logits.isfinite().all()
        assert shared.shape == batch.shared[0].shape
    assert len(evaluation_windows(settings, language, tokenizer)[0].inputs) == 3


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"calibration": {"sequence_length": 65}}, "got 65; allowed: gpt has 64 positions"),
        ({"evaluation": {**HELD, "sequence_length": 100}}, "evaluation.sequence_length: got 100"),
        ({"evaluation": {**HELD, "path": "none.txt"}}, "evaluation.path: none.txt is not a file"),
        ({"calibration": {"path": "none.txt"}}, "calibration.path: none.txt is not a file"),
    ],
)
def test_what_does_not_fit_is_told_before_weights_are_read(
    folders: Path, changes: dict[str, Any], expected: str
) -> None:
    for name in ("gpt", "gpt2"):
        (folders / name / "model.safetensors").unlink()
    with pytest.raises(InputError, match=expected):
        find_parents(config("gpt", "gpt2", **changes))


def test_only_models_that_predict_the_next_token_are_scored(folders: Path) -> None:
    assert find_parents(config("bert", "bert")).language is not None
    with pytest.raises(InputError, match="evaluation: bert is a BertForMaskedLM, which does not"):
        find_parents(config("bert", "bert", evaluation=HELD))


def test_folders_without_a_tokenizer_or_weights(folders: Path) -> None:
    for file in (folders / "gpt2").glob("tokenizer*"):
        file.unlink()
    with pytest.raises(CheckpointError, match="gpt2: no usable tokenizer"):
        find_parents(config("gpt", "gpt2"))
    (folders / "pieces" / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="pieces: holds no .safetensors file"):
        find_parents(config("gpt", "pieces", tokenizer={"source": "base"}))


def test_positions_of_families() -> None:
    import transformers as tf

    tokenizer = byte_level()
    assert tokenizer.model_max_length > 10**9
    assert positions_of(tf.GPT2Config(n_positions=96), tokenizer) == 96
    roberta = tf.RobertaConfig(max_position_embeddings=514, pad_token_id=1)
    assert positions_of(roberta, tokenizer) == 512
    tokenizer.model_max_length = 77
    assert positions_of(roberta, tokenizer) == 77
    assert positions_of(tf.MambaConfig(), byte_level()) is None
