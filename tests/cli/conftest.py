"""Run the command line in this process, and make small inputs for it."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
import yaml

from hetmerge import cli

FACTORIES = """
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self, hidden):
        super().__init__()
        self.hidden = hidden
        self.inner = nn.Linear(6, hidden)
        self.head = nn.Linear(hidden, 3)

    def forward(self, x):
        return self.head(torch.relu(self.inner(x)))


def net(hidden, seed):
    torch.manual_seed(seed)
    return Net(hidden)


def wide():
    return net(8, 0)


def narrow():
    return net(5, 1)


def no_module():
    return 3
"""


class Finished(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture
def run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., Finished]:
    def call(*arguments: object) -> Finished:
        monkeypatch.setattr("sys.argv", ["hetmerge", *map(str, arguments)])
        capsys.readouterr()
        try:
            cli.main()
            code = 0
        except SystemExit as stop:
            code = int(stop.code or 0)
        return Finished(code, *capsys.readouterr())

    return call


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with two factories, calibration inputs and a configuration; also the cwd."""
    torch.manual_seed(0)
    (tmp_path / "hetmerge_cli_factories.py").write_text(FACTORIES)
    np.save(tmp_path / "inputs.npy", np.random.RandomState(0).randn(64, 6).astype(np.float32))
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    write_config(tmp_path / "config.yaml")
    return tmp_path


@pytest.fixture
def language(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with two small Llamas, their tokenizers and a text; also the cwd."""
    from . import small_llamas as llamas

    monkeypatch.chdir(tmp_path)
    for name, shape in llamas.SHAPES.items():
        llamas.write_model(tmp_path / name, *shape)
        llamas.write_tokenizer(tmp_path / name, llamas.TEXT)
    (tmp_path / "text.txt").write_text(llamas.TEXT)
    return tmp_path


def write_config(path: Path, **changes: object) -> Path:
    config: dict[str, object] = {
        "models": [
            {"python": "hetmerge_cli_factories:wide"},
            {"python": "hetmerge_cli_factories:narrow"},
        ],
        "merge_method": "zip",
        "calibration": {"path": "inputs.npy", "batch_size": 32},
    }
    path.write_text(yaml.safe_dump({**config, **changes}))
    return path
