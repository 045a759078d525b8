"""Hugging Face directories through the command line: different depth, width and head count."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from .conftest import Finished, write_config

transformers = pytest.importorskip("transformers")
tokenizers = pytest.importorskip("tokenizers")

Run = Callable[..., Finished]
TEXT = "the quick brown fox jumps over the lazy dog while seven wizards box in a mixed zoo. " * 40
SHAPES = {"deep": (3, 32, 4), "shallow": (2, 24, 2)}


def write_model(folder: Path, layers: int, hidden: int, heads: int) -> None:
    torch.manual_seed(layers)
    config = transformers.LlamaConfig(
        vocab_size=256,
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=2 * heads,
        num_key_value_heads=heads,
        head_dim=8,
    )
    transformers.LlamaForCausalLM(config).save_pretrained(folder)


def write_tokenizer(folder: Path, text: str) -> None:
    byte_level = tokenizers.pre_tokenizers.ByteLevel
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = byte_level()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=256, initial_alphabet=sorted(set(text)), show_progress=False
    )
    tokenizer.train_from_iterator([text], trainer)
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer)
    fast.save_pretrained(folder)


@pytest.fixture
def language(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name, shape in SHAPES.items():
        write_model(tmp_path / name, *shape)
        write_tokenizer(tmp_path / name, TEXT)
    (tmp_path / "text.txt").write_text(TEXT)
    return tmp_path


def configure(folder: Path, **changes: object) -> None:
    config: dict[str, object] = {
        "models": [{"model": name} for name in SHAPES],
        "calibration": {"path": "text.txt", "tokens": 512, "sequence_length": 16},
    }
    write_config(folder / "config.yaml", **{**config, **changes})


@pytest.mark.slow
def test_two_llamas_become_a_directory_that_transformers_loads(language: Path, run: Run) -> None:
    configure(language, out_dtype="bfloat16")
    done = run("merge", "config.yaml", "out")
    assert done.code == 0, done.err
    merged = transformers.AutoModelForCausalLM.from_pretrained(language / "out")
    assert merged.dtype == torch.bfloat16
    assert merged.config.num_hidden_layers == 3
    assert merged.config.hidden_size == 32
    tokenizer = transformers.AutoTokenizer.from_pretrained(language / "out")
    ids = torch.tensor([tokenizer("the lazy fox")["input_ids"]])
    assert merged(input_ids=ids).logits.isfinite().all()


@pytest.mark.slow
def test_all_weight_on_one_llama_returns_it(language: Path, run: Run) -> None:
    models = [{"model": name, "parameters": {"weight": float(name == "deep")}} for name in SHAPES]
    configure(language, models=models, parameters={"refit": False})
    done = run("merge", "config.yaml", "out", "-q")
    assert (done.code, done.out) == (0, ""), done.err
    ids = torch.arange(12)[None]
    load = transformers.AutoModelForCausalLM.from_pretrained
    merged, deep = (load(language / name)(input_ids=ids).logits for name in ("out", "deep"))
    torch.testing.assert_close(merged, deep, atol=1e-4, rtol=1e-4)


def test_different_vocabularies_are_refused(language: Path, run: Run) -> None:
    write_tokenizer(language / "shallow", TEXT.upper())
    configure(language)
    done = run("merge", "config.yaml", "out")
    assert done.code == 2
    assert "vocabulary differs" in done.err.splitlines()[-1]
    assert not (language / "out").exists()


def test_too_little_text(language: Path, run: Run) -> None:
    (language / "text.txt").write_text("the fox")
    configure(language)
    done = run("merge", "config.yaml", "out")
    assert done.code == 2
    assert "fewer than one sequence_length of 16" in done.err
