"""Hugging Face directories through the command line: different depth, width and head count."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

import hetmerge
import hetmerge.folder_merge
from hetmerge.shard_writer import ShardWriter

from .conftest import Finished
from .small_llamas import SHAPES, TEXT, configure, write_model, write_tokenizer

transformers = pytest.importorskip("transformers")

Run = Callable[..., Finished]


def test_a_budget_in_words(language: Path, run: Run) -> None:
    """On disk, foreseen by the plan: a configuration within it, that transformers loads."""
    budget = {"parameters": "30K"}
    configure(language, merge_method="pca", parameters={"budget": budget, "refit": False})
    plan = run("plan", "config.yaml")
    assert plan.code == 0, plan.err
    assert "note: budget: 30,000 parameters; calibration chooses the widths" in plan.out
    done = run("merge", "config.yaml", "out")
    assert done.code == 0, done.err
    merged = transformers.AutoModelForCausalLM.from_pretrained(language / "out")
    count = sum(p.numel() for p in merged.parameters())
    assert 27_000 < count <= 30_000
    assert f"budget: {count:,} of 30,000 parameters" in done.out
    assert "`pca`: residual streams keep" in (language / "out" / "README.md").read_text()
    configure(language, merge_method="pca", parameters={"budget": {"parameters": 9}})
    refused = run("merge", "config.yaml", "small")
    assert refused.code == 2
    assert "budget: got 9 parameters; allowed: " in refused.err
    assert not list(language.glob(".small*"))


@pytest.mark.slow
def test_two_llamas_become_a_directory_that_transformers_loads(language: Path, run: Run) -> None:
    """With rows of padding, held-out scores, shards, and everything beside the weights."""
    write_model(language / "shallow", *SHAPES["shallow"], rows=264)
    tokenizer = transformers.AutoTokenizer.from_pretrained(language / "deep")
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    tokenizer.save_pretrained(language / "deep")
    transformers.GenerationConfig(temperature=0.5, do_sample=True).save_pretrained(
        language / "deep"
    )
    (language / "held.txt").write_text(TEXT[100:2000].replace("fox", "ox"))
    evaluation = {"path": "held.txt", "tokens": 64, "sequence_length": 16}
    configure(language, out_dtype="bfloat16", max_shard_size="50KB", evaluation=evaluation)
    done = run("merge", "config.yaml", "out")
    assert done.code == 0, done.err
    merged = transformers.AutoModelForCausalLM.from_pretrained(language / "out")
    assert merged.dtype == torch.bfloat16
    assert merged.config.num_hidden_layers == 3
    assert (merged.config.hidden_size, merged.config.vocab_size) == (32, 256)
    assert merged.generation_config.temperature == 0.5
    assert len(list((language / "out").glob("model-0000*-of-*.safetensors"))) > 1
    tokenizer = transformers.AutoTokenizer.from_pretrained(language / "out")
    assert tokenizer.apply_chat_template([{"role": "user", "content": "fox"}], tokenize=False)
    ids = torch.tensor([tokenizer("the lazy fox")["input_ids"]])
    assert merged.generate(ids, max_new_tokens=3).shape == (1, ids.shape[1] + 3)

    report = json.loads((language / "out" / "report.json").read_text())
    assert [source["name"] for source in report["sources"]] == list(SHAPES)
    assert list(report["scores"]) == ["parent 0", "parent 1", "merged"]
    assert all(set(found) == {"perplexity", "bits per byte"} for found in report["scores"].values())
    assert any(note.startswith("vocabulary: ") for note in report["notes"])
    assert "parent 1: shallow" in (language / "out" / "report.html").read_text()
    card = (language / "out" / "README.md").read_text()
    header = yaml.safe_load(card.split("---")[1])
    assert header == {"library_name": "transformers", "tags": ["hetmerge", "merge"]}
    for part in (
        "| parent 1 | shallow |  |  | LlamaForCausalLM |",
        "- features: `zip`",
        "model.layers: 3 + 2 -> 3",
        "| model.embed_tokens | 32 + 24 | 32 |",
        "| merged | ",
        "path: held.txt",
        f"hetmerge {hetmerge.__version__}",
    ):
        assert part in card, card


@pytest.mark.slow
@pytest.mark.parametrize("source", ["base", "union"])
def test_different_tokenizers_become_one(language: Path, run: Run, source: str) -> None:
    write_tokenizer(language / "shallow", TEXT.upper() + TEXT)
    (language / "held.txt").write_text(TEXT[100:2000].replace("fox", "ox"))
    evaluation = {"path": "held.txt", "tokens": 64, "sequence_length": 16}
    configure(language, tokenizer={"source": source}, evaluation=evaluation)
    done = run("merge", "config.yaml", "out")
    assert done.code == 0, done.err
    merged = transformers.AutoModelForCausalLM.from_pretrained(language / "out")
    tokenizer = transformers.AutoTokenizer.from_pretrained(language / "out")
    assert merged.config.vocab_size == merged.get_input_embeddings().num_embeddings
    assert len(tokenizer) <= merged.config.vocab_size
    assert merged(torch.tensor([tokenizer("the fox")["input_ids"]])).logits.isfinite().all()
    scores = json.loads((language / "out" / "report.json").read_text())["scores"]
    assert list(scores) == ["parent 0", "parent 1", "merged"]


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


def test_a_plan_is_made_without_weights(language: Path, run: Run) -> None:
    configure(language, out_dtype="bfloat16")
    done = run("plan", "config.yaml", "--json")
    assert done.code == 0, done.err
    found = json.loads(done.out)
    assert (found["model"], found["dtype"]) == ("LlamaForCausalLM", "bfloat16")
    assert found["bytes"] == 2 * found["parameters"]
    done = run("plan", "config.yaml")
    assert done.code == 0, done.err
    for part in ("parent 0: deep", "result: LlamaForCausalLM", "memory: peak", "disk: ", "work: "):
        assert part in done.out
    assert "problem" not in done.out
    assert not (language / "out").exists()


@pytest.mark.slow
def test_massive_positions_are_left_out_where_asked(
    language: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    command = hetmerge.folder_merge
    whole = command.without_massive
    monkeypatch.setattr(
        command, "without_massive", lambda *a, **k: seen.append(a) or whole(*a, **k)
    )
    calibration = {"path": "text.txt", "tokens": 128, "sequence_length": 16}
    configure(language, calibration={**calibration, "exclude_massive": True})
    done = run("merge", "config.yaml", "out", "-q")
    assert done.code == 0, done.err
    assert len(seen) == 1


@pytest.mark.slow
def test_everything_on_another_device(
    language: Path, run: Run, elsewhere: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two tokenizers, massive positions and held-out scores: the result is that of the CPU."""
    monkeypatch.setattr("hetmerge.forecast.SIDE_ELSEWHERE", 64)
    write_tokenizer(language / "shallow", TEXT.upper() + TEXT)
    (language / "held.txt").write_text(TEXT[100:2000].replace("fox", "ox"))
    calibration = {"path": "text.txt", "tokens": 256, "sequence_length": 16}
    settings = {
        "calibration": {**calibration, "exclude_massive": True},
        "evaluation": {"path": "held.txt", "tokens": 64, "sequence_length": 16},
        "tokenizer": {"source": "union"},
        "polish": {"steps": 2},
        "dtype": "float64",
    }
    found = {}
    for device in ("cpu", str(elsewhere)):
        configure(language, device=device, **settings)
        planned = run("plan", "config.yaml")
        there = f"memory of {elsewhere.type}: peak" in planned.out
        assert there == (device != "cpu"), planned.err or planned.out
        out = language / device.replace(":", "-")
        done = run("merge", "config.yaml", out, "-q")
        assert done.code == 0, done.err
        found[device] = json.loads((out / "report.json").read_text())["scores"]
    for who, scores in found["cpu"].items():
        assert scores == pytest.approx(found[str(elsewhere)][who], rel=1e-4)


def test_a_plan_names_what_is_wrong(language: Path, run: Run) -> None:
    configure(language, parameters={"stop_at": 1})
    done = run("plan", "config.yaml")
    assert done.code == 0, done.err
    assert "stop at 1: behind it one head per parent" in done.out
    assert "result:" not in done.out
    (language / "deep" / "model.safetensors").unlink()
    configure(language)
    done = run("plan", "config.yaml")
    assert done.code == 2
    assert "deep" in done.err
    assert "safetensors" in done.err


def test_different_vocabularies_are_refused(language: Path, run: Run) -> None:
    write_tokenizer(language / "shallow", TEXT.upper())
    configure(language)
    done = run("merge", "config.yaml", "out")
    assert done.code == 2
    assert "those of deep (" in done.err.splitlines()[-1]
    assert "differ; choose whose tokens" in done.err.splitlines()[-1]
    assert not (language / "out").exists()


def test_too_little_text(language: Path, run: Run) -> None:
    (language / "text.txt").write_text("the fox")
    configure(language)
    done = run("merge", "config.yaml", "out")
    assert done.code == 2
    assert "fewer than one sequence_length of 16" in done.err


def test_numbers_that_do_not_fit_are_not_written(language: Path, run: Run) -> None:
    for name in SHAPES:
        write_model(language / name, 1, 16, 1)
    path = language / "deep" / "model.safetensors"
    tensors = load_file(path)
    tensors["model.embed_tokens.weight"] *= 1e8
    save_file(tensors, path, metadata={"format": "pt"})
    configure(language, out_dtype="float16", parameters={"refit": False})
    done = run("merge", "config.yaml", "out", "-q")
    assert done.code == 2
    (line,) = done.err.splitlines()
    assert "out_dtype: tensor 'model.embed_tokens.weight' holds " in line
    assert "float16 ends at 6.55e+04" in line
    assert not (language / "out").exists()


def test_windows_longer_than_a_parent_reads(language: Path, run: Run) -> None:
    path = language / "shallow" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "max_position_embeddings": 12}))
    configure(language)
    done = run("merge", "config.yaml", "out")
    assert done.code == 2
    assert "calibration.sequence_length: got 16; allowed: shallow has 12 positions" in done.err


def test_a_missing_tensor_is_named(language: Path, run: Run) -> None:
    path = language / "deep" / "model.safetensors"
    tensors = load_file(path)
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, path, metadata={"format": "pt"})
    configure(language)
    done = run("merge", "config.yaml", "out", "-q")
    assert done.code == 2
    assert "deep: holds no tensor 'model.layers.1.mlp.up_proj.weight'" in done.err


def test_a_merge_that_is_stopped_by_hand_goes_on(
    language: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    configure(language)
    finish, count = ShardWriter.finish, 0

    def stopping(*arguments: object) -> None:
        nonlocal count
        count += 1
        if count == 4:
            raise KeyboardInterrupt
        finish(*arguments)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(ShardWriter, "finish", stopping)
        done = run("merge", "config.yaml", "out", "-q")
    assert done.code == 130
    assert done.err == "hetmerge: stopped; the same command goes on from what is finished\n"
    assert not (language / "out").exists()
    assert run("merge", "config.yaml", "out", "-q").code == 0
    assert (language / "out" / "model.safetensors").exists()


def test_a_llama_and_a_qwen_become_one(language: Path, run: Run) -> None:
    """Families, heads, groups of keys and tokenizers differ at once."""
    config = transformers.Qwen2Config(
        vocab_size=256,
        hidden_size=24,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        bos_token_id=None,
        eos_token_id=None,
    )
    transformers.Qwen2ForCausalLM(config).save_pretrained(language / "shallow")
    write_tokenizer(language / "shallow", TEXT[:400])
    configure(language, tokenizer={"source": "deep"})
    said = run("plan", "config.yaml")
    assert "LlamaForCausalLM is stated as Qwen2ForCausalLM" in said.out, said.err
    done = run("merge", "config.yaml", "out")
    assert done.code == 0, done.err
    merged = transformers.AutoModelForCausalLM.from_pretrained(language / "out")
    assert type(merged).__name__ == "Qwen2ForCausalLM"
    assert merged.config.num_key_value_heads == merged.config.num_attention_heads == 8
    assert merged.config.head_dim == 12
    card = (language / "out" / "README.md").read_text()
    assert "keys and values of 4 groups are repeated for 8" in card
    ids = torch.tensor([[5, 9, 3]])
    assert merged.generate(ids, max_new_tokens=2).shape == (1, 5)
