"""Partial merges of Hugging Face models: one trunk, and the rest of each parent behind it."""

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import hetmerge as hm

hf = pytest.importorskip("families.pretrained")

EXACT = 1e-4  # float32, and norms divide by small deviations


def logits(model: nn.Module, batch: dict[str, Tensor], **options: str) -> Tensor:
    """Of positions that are not padded."""
    with torch.no_grad():
        found = model(**batch, **options)
    found = found if isinstance(found, Tensor) else found.logits
    mask = batch.get("attention_mask")
    return found if mask is None else found[mask.bool()]


def gap(found: Tensor, wanted: Tensor) -> float:
    return float((found - wanted).norm() / wanted.norm())


def test_self_merge_of_a_language_model_keeps_the_function() -> None:
    parent = hf.lively(hf.llama(3, 32), 1)
    batches = hf.tokens()
    result = hm.merge(
        [parent, copy.deepcopy(parent)],
        batches,
        stop_at=2,
        refit=False,
        progress=False,
        match="zip",
    )
    assert gap(logits(result.model, batches[0]), logits(parent, batches[0])) < EXACT
    assert result.report.merged_parameters < 2 * sum(p.numel() for p in parent.parameters())


def test_language_models_of_different_shape(tmp_path: Path) -> None:
    parents = [hf.lively(hf.llama(3, 32), 1), hf.lively(hf.llama(2, 48, 6), 2)]
    batches, names = hf.tokens(), ["deep", "wide"]
    errors = {}
    for refit in (False, True):
        result = hm.merge(
            parents,
            batches,
            stop_at="model.layers.1",
            outputs="average",
            names=names,
            refit=refit,
            progress=False,
            match="zip",
        )
        errors[refit] = [
            gap(logits(result.model, batches[0], head=name), logits(parent, batches[0]))
            for name, parent in zip(names, parents, strict=True)
        ]
    assert max(errors[True]) < min(errors[False])
    each = [logits(result.model, batches[0], head=name) for name in names]
    assert gap(logits(result.model, batches[0]), sum(each) / 2) < EXACT
    result.save(tmp_path / "merged")
    again = hm.load(tmp_path / "merged")
    fewer = {name: value[:2] for name, value in batches[1].items()}
    assert torch.equal(logits(again, fewer), logits(result.model, fewer))


def test_image_models_at_union_are_the_ensemble() -> None:
    parents = [hf.lively(hf.resnet(2, 8), 1), hf.lively(hf.resnet(1, 12), 2)]
    batches = hf.images()
    result = hm.merge(parents, batches, width="union", stop_at=2, progress=False, match="zip")
    wanted = sum(logits(parent, batches[0]) for parent in parents) / 2
    assert gap(logits(result.model, batches[0]), wanted) < EXACT
