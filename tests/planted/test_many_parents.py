"""Three parents of different depth and width: their order, their weights, their union."""

from __future__ import annotations

import pytest
import torch
from planted_nets import ResNet, images, randomised
from torch import Tensor, nn

import hetmerge as hm

EXACT = 1e-8  # float64, a few hundred roundings of 1e-16
REFITTED = 1e-6  # the same through solves whose condition is at most 1e4 each

WEIGHTS = {"a": 3.0, "b": 2.0, "c": 1.0}
LABELS = {"a": list("pqrst"), "b": list("qprsu"), "c": list("tpvqw")}


@pytest.fixture(scope="module")
def parents() -> dict[str, nn.Module]:
    shapes = {"a": ([3, 1], [6, 12]), "b": ([2, 2], [8, 10]), "c": ([1, 2], [4, 8])}
    return {k: randomised(ResNet(*shape), i) for i, (k, shape) in enumerate(shapes.items())}


def outputs(model: nn.Module) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        return model(torch.randn(16, 3, 12, 12, dtype=torch.float64, generator=generator))


def gap(found: Tensor, wanted: Tensor) -> float:
    return float((found - wanted).abs().max() / wanted.abs().max())


def merge(parents: dict[str, nn.Module], order: str, **options: object) -> hm.MergeResult:
    options = {"match": "zip", "weights": [WEIGHTS[k] for k in order], **options}
    return hm.merge([parents[k] for k in order], images(), progress=False, **options)


@pytest.mark.parametrize("refit", [False, True])
@pytest.mark.parametrize("match", ["zip", "permute", "select", "identity"])
def test_their_order_does_not_matter(parents, match: str, refit: bool) -> None:
    first, second = (
        outputs(merge(parents, order, match=match, refit=refit).model) for order in ("abc", "cba")
    )
    assert gap(second, first) < (REFITTED if refit else EXACT)


def test_named_outputs_follow_their_names(parents) -> None:
    """Merged outputs stand in the order in which their names first appear."""
    found = {}
    for order in ("abc", "bca"):
        model = merge(parents, order, labels=[LABELS[k] for k in order], refit=False).model
        names = dict.fromkeys(name for k in order for name in LABELS[k])
        found[order] = dict(zip(names, outputs(model).T, strict=True))
    assert found["abc"].keys() == found["bca"].keys()
    for name, column in found["abc"].items():
        assert gap(found["bca"][name], column) < EXACT


@pytest.mark.parametrize("match", ["zip", "permute", "select"])
def test_weights_nought_and_one(parents, match: str) -> None:
    for k in parents:
        weights = [float(k == other) for other in parents]
        merged = merge(parents, "abc", match=match, weights=weights)
        assert gap(outputs(merged.model), outputs(parents[k])) < EXACT


def test_a_parent_of_weight_nought_has_no_say(parents) -> None:
    """Two parents with a third, silent one merge as if it were not there."""
    pair = [parents["a"], parents["b"]]
    alone = hm.merge(pair, images(), weights=[3, 2], refit=False, progress=False, match="zip")
    merged = merge(parents, "abc", weights=[3, 2, 0], refit=False)
    assert gap(outputs(merged.model), outputs(alone.model)) < EXACT


@pytest.mark.parametrize("stop_at", [None, 2])
def test_union_is_the_ensemble(parents, stop_at: int | None) -> None:
    merged = merge(parents, "bca", width="union", stop_at=stop_at)
    wanted = sum(WEIGHTS[k] / 6 * outputs(parent) for k, parent in parents.items())
    assert merged.report.exact
    assert gap(outputs(merged.model), wanted) < EXACT
    if stop_at is not None:
        for m, k in enumerate("bca"):
            assert gap(outputs(merged.model.branch(f"parent{m}")), outputs(parents[k])) < EXACT
