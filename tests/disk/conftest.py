"""Small checkpoints on disk."""

import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1] / "merging")]
os.environ.setdefault("HF_HUB_OFFLINE", "1")

tf = pytest.importorskip("transformers")
from families import pretrained as hf  # noqa: E402

tf.logging.set_verbosity_error()
tf.logging.disable_progress_bar()

PAIRS = {
    "llama": lambda: [hf.llama(3, 32, 4, 2), hf.llama(2, 48, 6, 2)],
    # heads of two sizes, groups of keys beside none
    "heads": lambda: [hf.llama(3, 32, 4, 2, head_dim=16), hf.llama(2, 48, 6, 6)],
    "gpt2": lambda: [hf.gpt2(3, 16, 2), hf.gpt2(2, 24, 3)],
    "bert": lambda: [hf.bert(2, 16, 2), hf.bert(2, 24, 3)],
    "depths of bert": lambda: [hf.bert(4, 16, 2), hf.bert(2, 24, 3)],
    "vit": lambda: [hf.vit(3, 16, 2), hf.vit(2, 24, 3)],
}
INPUTS = {"vit": hf.images}


@pytest.fixture(autouse=True)
def _no_pictures(monkeypatch) -> None:
    """Reports without their pictures, which other tests look at: a sixth of a small merge."""
    monkeypatch.setattr("hetmerge.page.svg", lambda figure: "<svg/>")


@pytest.fixture
def parents(tmp_path: Path) -> Callable[[str], tuple[list, list[Path], list]]:
    """parents(family): modules, the folders they are saved in, batches."""

    def build(family: str):
        models = [hf.lively(model, i + 1) for i, model in enumerate(PAIRS[family]())]
        folders = [tmp_path / f"parent{i}" for i in range(len(models))]
        for model, folder in zip(models, folders, strict=True):
            model.float().save_pretrained(folder)
        return [m.float() for m in models], folders, _batches(family)

    return build


def _batches(family: str) -> list[dict[str, torch.Tensor]]:
    found = INPUTS.get(family, hf.tokens)()
    return [
        {k: v.float() if v.is_floating_point() else v for k, v in batch.items()} for batch in found
    ]
