"""Hugging Face directories: code of their own, missing tensors; cards of what is merged."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from language_models import byte_level, llama
from safetensors.torch import load_file, save_file

from hetmerge.card import model_card
from hetmerge.errors import CheckpointError
from hetmerge.lazy import empty_of
from hetmerge.options import MATCHES, Options
from hetmerge.pretrained import (
    class_of,
    config_of,
    is_huggingface,
    load_pretrained,
    load_tokenizer,
)
from hetmerge.sources import load_model

CODE = """
import torch
from transformers import PretrainedConfig, PreTrainedModel


class OwnConfig(PretrainedConfig):
    model_type = "own_kind"

    def __init__(self, hidden=4, **kwargs):
        super().__init__(**kwargs)
        self.hidden = hidden


class OwnModel(PreTrainedModel):
    config_class = OwnConfig

    def __init__(self, config):
        super().__init__(config)
        self.layer = torch.nn.Linear(config.hidden, config.hidden)
        self.post_init()

    def forward(self, x):
        return self.layer(x)
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model whose family transformers lacks, with its code beside the weights."""
    folder = tmp_path / "own"
    folder.mkdir()
    (folder / "code_of_own.py").write_text(CODE)
    body = {
        "architectures": ["OwnModel"],
        "model_type": "own_kind",
        "hidden": 4,
        "auto_map": {"AutoConfig": "code_of_own.OwnConfig", "AutoModel": "code_of_own.OwnModel"},
    }
    (folder / "config.json").write_text(json.dumps(body))
    tensors = {"layer.weight": torch.eye(4), "layer.bias": torch.ones(4)}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "hf"))
    monkeypatch.syspath_prepend(str(tmp_path / "hf"))
    return folder


def test_code_of_a_directory_is_not_run(own: Path) -> None:
    (own / "code_of_own.py").write_text("raise SystemExit('was run')")
    for read in (load_pretrained, empty_of, config_of, load_tokenizer):
        with pytest.raises(
            CheckpointError, match="needs its own code .* is not run; set trust_rem"
        ):
            read(own)


def test_code_of_a_directory_is_run_when_asked_for(own: Path) -> None:
    model = load_model(str(own), torch.float64, remote_code=True)
    x = torch.randn(2, 4, dtype=torch.float64)
    assert torch.equal(model(x), x + 1)
    assert type(model).__name__ == class_of(own, remote_code=True).__name__ == "OwnModel"


def test_own_code_of_a_family_that_transformers_has_is_passed_over(tmp_path: Path) -> None:
    model = llama(40)
    model.save_pretrained(tmp_path / "model")
    file = tmp_path / "model" / "config.json"
    body = json.loads(file.read_text())
    body["auto_map"] = {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}
    file.write_text(json.dumps(body))
    assert type(load_pretrained(tmp_path / "model")) is type(model)
    body["architectures"] = ["NoSuchModel"]
    file.write_text(json.dumps(body))
    with pytest.raises(CheckpointError, match="architectures is .'NoSuchModel'.; allowed: a class"):
        load_pretrained(tmp_path / "model")


def test_damaged_directories(tmp_path: Path) -> None:
    llama(40).save_pretrained(tmp_path / "model")
    byte_level().save_pretrained(tmp_path / "model")
    path = tmp_path / "model" / "model.safetensors"
    tensors = load_file(path)
    save_file({k: v for k, v in tensors.items() if "norm" not in k}, path, {"format": "pt"})
    with pytest.raises(
        CheckpointError, match="no tensor 'model.layers.0.input_layernorm.weight' .3"
    ):
        load_pretrained(tmp_path / "model")
    (tmp_path / "model" / "tokenizer.json").write_text("{")
    with pytest.raises(CheckpointError, match="no usable tokenizer"):
        load_tokenizer(tmp_path / "model")
    (tmp_path / "model" / "config.json").write_text("[]")
    with pytest.raises(CheckpointError, match="not a JSON object"):
        is_huggingface(tmp_path / "model")
    assert not is_huggingface(tmp_path)


def card(match: str = "auto", **changes: Any) -> str:
    report = SimpleNamespace(
        date="2026-01-02",
        parameters=[10, 20],
        merged_parameters=20,
        samples=5,
        weights=[0.5, 0.5],
        options=Options(match=match).to_dict(),
        spaces=[
            SimpleNamespace(name=f"layers.{k}.mlp", sizes=[4, None], width=4) for k in range(3)
        ],
        notes=["a remark | with a bar"],
        scores={},
        polish=None,
        sources=[{"name": "org/a", "revision": "v1", "sha": "c" * 40}, {"name": "b|c"}],
        **changes,
    )
    plan = SimpleNamespace(
        parents=[{"class": "m.A"}, {"class": "m.B"}],
        stages=["layers"],
        slots=[[[0, 1]], [[0, None]]],
        base=0,
    )
    return model_card(report, plan, "models: []\n")  # type: ignore[arg-type]


@pytest.mark.parametrize("match", MATCHES)
def test_a_card_says_how_features_meet(match: str) -> None:
    assert f"- features: `{match}`: " in card(match)


def test_a_card_names_hub_parents_in_its_header() -> None:
    text = card()
    header = yaml.safe_load(text.split("---\n")[1])
    assert header == {
        "base_model": ["org/a"],
        "base_model_relation": "merge",
        "library_name": "transformers",
        "tags": ["hetmerge", "merge"],
    }
    assert f"| parent 0 | org/a | v1 | {'c' * 40} | A | 10 | 0.5 |" in text
    assert r"| parent 1 | b\|c |  |  | B | 20 | 0.5 |" in text
    assert "layers: 2 + 1 -> 2" in text
    assert text.count("| layers.*.mlp | 4 + - | 4 |") == 1
    assert "## Evaluation" not in text
    assert "```yaml\nmodels: []\n```" in text
