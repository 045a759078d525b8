from collections.abc import Callable
from pathlib import Path

import pytest

from .conftest import Finished

Run = Callable[..., Finished]


@pytest.fixture
def llama(tmp_path: Path) -> Path:
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    transformers.LlamaForCausalLM(config).save_pretrained(tmp_path / "llama")
    return tmp_path / "llama"


def test_inspect_a_factory(project: Path, run: Run) -> None:
    done = run("inspect", "hetmerge_cli_factories:wide", "--input", "2,6", "--verify")
    assert done.code == 0, done.err
    assert "inner.weight" in done.out
    assert "verified" in done.out


def test_inspect_a_tiny_llama_without_its_weights(llama: Path, run: Run) -> None:
    (llama / "model.safetensors").unlink()
    done = run("inspect", llama)
    assert done.code == 0, done.err
    assert "model.layers.1.mlp.down_proj.weight" in done.out


def test_verify_reads_the_weights(llama: Path, run: Run) -> None:
    done = run("inspect", llama, "--verify")
    assert done.code == 0, done.err
    assert "verified" in done.out
    (llama / "model.safetensors").rename(llama / "pytorch_model.bin")
    done = run("inspect", llama, "--verify")
    assert done.code == 2
    assert "convert it to safetensors" in done.err


@pytest.mark.parametrize("shape", ["a", "1,0", "1,,2", "-1"])
def test_bad_shapes(project: Path, run: Run, shape: str) -> None:
    done = run("inspect", "hetmerge_cli_factories:wide", f"--input={shape}")
    assert done.code == 2
    assert "--input: expected sizes above 0" in done.err


def test_a_model_that_needs_a_shape(project: Path, run: Run) -> None:
    done = run("inspect", "hetmerge_cli_factories:wide")
    assert done.code == 2
    assert "--input" in done.err


def test_unknown_models(project: Path, run: Run) -> None:
    done = run("inspect", "nowhere", "--input", "1,3")
    assert (done.code, done.out) == (2, "")
    assert "nowhere: no such directory" in done.err
