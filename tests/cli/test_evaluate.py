"""Tasks of lm-eval: a local one, on a merge of small Llamas; and what is said where it is not."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml

from .conftest import Finished

transformers = pytest.importorskip("transformers")
from .small_llamas import SHAPES, configure  # noqa: E402

Run = Callable[..., Finished]
TASK = {
    "task": "foxes",
    "dataset_path": "json",
    "dataset_kwargs": {"data_files": {"test": "foxes.json"}},
    "test_split": "test",
    "output_type": "multiple_choice",
    "doc_to_text": "{{question}}",
    "doc_to_choice": "{{choices}}",
    "doc_to_target": "{{label}}",
    "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
}
QUESTIONS = [
    {"question": "the quick brown", "choices": ["fox", "zoo", "lazy"], "label": 0},
    {"question": "over the lazy", "choices": ["box", "dog"], "label": 1},
    {"question": "seven wizards", "choices": ["box", "fox", "in"], "label": 2},
    {"question": "in a mixed", "choices": ["dog", "zoo"], "label": 0},
]


@pytest.fixture
def merged(language: Path, run: Run) -> Path:
    for name in SHAPES:
        tokenizer = transformers.AutoTokenizer.from_pretrained(language / name)
        tokenizer.eos_token = "."
        tokenizer.save_pretrained(language / name)
    configure(language, parameters={"refit": False})
    done = run("merge", "config.yaml", "out", "-q")
    assert done.code == 0, done.err
    return language / "out"


def chosen_rightly(folder: Path, questions: list[dict]) -> float:
    """Accuracy as lm-eval defines it: the choice whose tokens are likeliest."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    right = 0
    for q in questions:
        start, scores = len(tokenizer(q["question"])["input_ids"]), []
        for choice in q["choices"]:
            ids = torch.tensor([tokenizer(f"{q['question']} {choice}")["input_ids"]])
            with torch.no_grad():
                logs = model(ids).logits[0].log_softmax(-1)
            rows = range(start - 1, ids.shape[1] - 1)
            scores.append(sum(float(logs[i, ids[0, i + 1]]) for i in rows))
        right += scores.index(max(scores)) == q["label"]
    return right / len(questions)


@pytest.mark.slow
def test_parents_and_result_on_a_local_task(merged: Path) -> None:
    pytest.importorskip("lm_eval", reason="lm-eval is not installed (pip install hetmerge[eval])")
    tasks = merged.parent / "tasks"
    tasks.mkdir()
    (tasks / "foxes.yaml").write_text(yaml.safe_dump(TASK))
    (merged.parent / "foxes.json").write_text("\n".join(map(json.dumps, QUESTIONS)))
    code = "from hetmerge.cli import main; main()"
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(merged.parent / "home")}

    def evaluate(*more: str) -> subprocess.CompletedProcess:
        words = ["evaluate", "out", "--tasks", "foxes", "--include-path", "tasks", *more]
        return subprocess.run(
            [sys.executable, "-c", code, *words],
            cwd=merged.parent, env=environment, capture_output=True, text=True, timeout=250,
        )  # fmt: skip

    weights = (merged / "model.safetensors").read_bytes()
    done = evaluate()
    assert done.returncode == 0, done.stderr
    scores = json.loads((merged / "report.json").read_text())["scores"]
    folders = {"parent 0": "deep", "parent 1": "shallow", "merged": "out"}
    assert scores == {
        who: {"foxes acc": chosen_rightly(merged.parent / name, QUESTIONS)}
        for who, name in folders.items()
    }
    assert "merged: foxes acc " in done.stdout
    assert "foxes acc" in (merged / "report.html").read_text()
    card = (merged / "README.md").read_text()
    assert re.search(r"\| merged \| [\d.]+ \|", card)
    assert "lm_eval " in card
    assert (merged / "model.safetensors").read_bytes() == weights

    done = evaluate("--limit", "2", "--batch-size", "3")
    assert done.returncode == 0, done.stderr
    found = json.loads((merged / "report.json").read_text())["scores"]["merged"]
    assert found == {
        **scores["merged"],
        "foxes acc, first 2": chosen_rightly(merged, QUESTIONS[:2]),
    }

    done = evaluate("--tasks", "fxes")
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].endswith(
        "tasks: lm-eval has no task 'fxes'; did you mean 'foxes'?"
    )


@pytest.mark.slow
def test_one_message_where_something_is_missing(
    merged: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = (merged / "report.json").read_bytes()
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    monkeypatch.setitem(sys.modules, "lm_eval.tasks", None)

    def says(message: str, *words: str) -> None:
        done = run("evaluate", *words)
        assert done.code == 2
        assert message in " ".join(done.err.split())

    says("not installed: pip install hetmerge[eval]", "out", "--tasks", "arc_easy")
    says("deep/report.json: cannot be read", "deep", "--tasks", "arc_easy")
    says(
        "include-path: nowhere is not a folder", "out", "--tasks", "a", "--include-path", "nowhere"
    )
    says("--tasks", "out")
    (merged.parent / "shallow").rename(merged.parent / "moved")
    says("shallow: no such directory", "out", "--tasks", "arc_easy")
    assert (merged / "report.json").read_bytes() == before
    (merged / "report.json").write_text("{}")
    says("report.json: damaged, or of another release", "out", "--tasks", "arc_easy")
