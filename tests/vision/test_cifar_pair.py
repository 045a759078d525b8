"""The vision benchmark on real specialists: few images, but the claims of the full table."""

import sys
from pathlib import Path

import pytest
import torch

import hetmerge as hm

VISION = Path(__file__).parents[2] / "benchmarks" / "vision"
pytestmark = pytest.mark.data


@pytest.fixture(scope="module")
def bench(data: Path):
    sys.path.insert(0, str(VISION))
    try:
        import cifar_models
        import cifar_pair
        import data as images
        import measure
    finally:
        sys.path.remove(str(VISION))
    paths = [data / f"{name}.safetensors" for name in cifar_pair.PAIRS["specialists"]]
    parents = [cifar_models.load(path) for path in paths]
    test, labels = images.cifar10("test", 1000)
    calibration, _ = images.cifar10("train", 500)
    task = measure.Task(test, labels, tuple(parent.classes for parent in parents))
    return cifar_pair.Bench(parents, calibration, task)


def accuracies(bench, *rows: str) -> list[float]:
    return [row.accuracy for row in bench.rows(list(rows), [])]


def test_parents_know_their_half_and_nothing_else(bench) -> None:
    first, second = bench.rows(["parents"], [])
    assert first.halves[0] > 0.8
    assert second.halves[1] > 0.8
    assert max(first.accuracy, second.accuracy) < 0.55


def test_plain_average_is_chance(bench) -> None:
    assert max(accuracies(bench, "average")) < 0.3


@pytest.mark.slow
def test_merge_beats_every_head_on_one_body(bench) -> None:
    (merged,) = accuracies(bench, "zip+refit")
    (unrefitted,) = accuracies(bench, "zip")
    assert merged > max(accuracies(bench, "head")) + 0.03
    assert merged > unrefitted + 0.2


@pytest.mark.slow
def test_union_is_the_ensemble(bench) -> None:
    result = hm.merge(
        bench.models, bench.batches[:1], width="union", outputs="concat", progress=False
    )
    images = bench.task.images[:250]
    with torch.no_grad():
        wanted = torch.cat([model(images) for model in bench.models], dim=1)
        torch.testing.assert_close(result.model(images), wanted, atol=1e-4, rtol=1e-4)
