"""`--polish` and its key: both ways of merging, tokenizers that differ, what is said about it."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

import hetmerge as hm
from hetmerge.config import Polishing, read_config
from hetmerge.polishing import RATE

from .conftest import Finished, write_config

Run = Callable[..., Finished]


def reported(folder: Path) -> dict:
    return json.loads((folder / "report.json").read_text())["polish"]


def test_in_memory(project: Path, run: Run) -> None:
    assert run("merge", "config.yaml", "plain", "-q").code == 0
    assert reported(project / "plain") is None
    done = run("merge", "config.yaml", "out", "--polish", 30)
    assert done.code == 0, done.err
    assert "polish (training): 30 steps of Adam, peak memory" in done.out
    assert "trained for 30 steps of Adam on the parents' outputs; squared error " in done.out
    found = reported(project / "out")
    assert (found["steps"], found["learning_rate"]) == (30, RATE)
    inputs = torch.from_numpy(np.load(project / "inputs.npy"))
    nets = __import__("hetmerge_cli_factories")
    with torch.no_grad():
        wanted = (nets.wide()(inputs) + nets.narrow()(inputs)) / 2
        losses = [
            float((hm.load(project / d)(inputs) - wanted).square().mean()) for d in ("plain", "out")
        ]
    assert losses == pytest.approx([found["before"], found["after"]], rel=1e-4)
    assert losses[1] < losses[0]


def test_the_key_and_the_option_that_overrides_it(project: Path) -> None:
    path = write_config(project / "config.yaml", polish={"steps": 9, "learning_rate": 0.01})
    assert read_config(path).polish == Polishing(steps=9, learning_rate=0.01)
    assert read_config(path, 0).polish == Polishing(steps=0, learning_rate=0.01)
    assert read_config(write_config(path), 4).polish == Polishing(steps=4, learning_rate=RATE)
    assert read_config(write_config(path)).polish is None


@pytest.mark.parametrize(
    ("changes", "options", "message"),
    [
        ({"polish": {"steps": -1}}, (), "polish.steps: input should be greater than or equal to 0"),
        ({"polish": {"learning_rate": 1.0}}, (), "polish.steps: required, but missing"),
        ({"polish": {"steps": 1, "learning_rate": 0}}, (), "polish.learning_rate: "),
        ({"polish": {"step": 1}}, (), "polish: unknown key 'step'; did you mean 'steps'?"),
        ({"parameters": {"stop_at": 1}}, ("--polish", 5), "polish: trains a whole merge"),
        ({}, ("--polish", -2), "--polish"),
        (
            {"polish": {"steps": 9, "learning_rate": 1e30}},
            (),
            "polish: the loss is not finite at step 2 of 9; allowed: a smaller learning_rate",
        ),
    ],
)
def test_bad_input(
    project: Path, run: Run, changes: dict, options: tuple[object, ...], message: str
) -> None:
    write_config(project / "config.yaml", **changes)
    done = run("merge", "config.yaml", "out", *options)
    assert done.code == 2
    assert message in " ".join(done.err.split())
    assert not (project / "out").exists()


@pytest.mark.slow
def test_from_disk_with_different_tokenizers(language: Path, run: Run) -> None:
    transformers = pytest.importorskip("transformers")
    from .small_llamas import configure, write_tokenizer

    text = (language / "text.txt").read_text()
    write_tokenizer(language / "shallow", text.upper() + text)
    configure(language, tokenizer={"source": "union"}, parameters={"head": "bayes"})
    done = run("plan", "config.yaml", "--polish", 6)
    assert "polish (training): 6 steps of Adam" in done.out, done.err
    assert "the disk holds the result twice meanwhile" in done.out
    assert "problem" not in done.out
    done = run("merge", "config.yaml", "out", "--polish", 6)
    assert done.code == 0, done.err
    assert "polish (training): 6 steps of Adam" in done.out
    found = reported(language / "out")
    assert 0 < found["after"] < found["before"]
    assert found["loss"] == "Kullback-Leibler divergence"
    transformers.AutoModelForCausalLM.from_pretrained(language / "out")
    card = (language / "out" / "README.md").read_text()
    assert "without training" not in card
    assert "and then trained: 6 steps (polish)." in card
    assert "- polish: trained for 6 steps of Adam on the parents' outputs; Kullback" in card
    assert "hetmerge merge config.yaml out --polish 6" in card
