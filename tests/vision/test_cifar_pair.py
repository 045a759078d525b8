"""The vision benchmark on real specialists: few images, but the claims of the full table."""

from pathlib import Path

import pytest
import torch

import hetmerge as hm

pytestmark = pytest.mark.data


@pytest.fixture(scope="module")
def bench(data: Path, script):
    load, images = script("cifar_models").load, script("data")
    paths = [data / f"{name}.safetensors" for name in script("cifar_pair").PAIRS["specialists"]]
    parents = [load(path) for path in paths]
    test, labels = images.cifar10("test", 1000)
    calibration, _ = images.cifar10("train", 500)
    task = script("measure").Task(test, labels, tuple(parent.classes for parent in parents))
    return script("recipes").Bench(parents, calibration, task)


@pytest.fixture(scope="module")
def rows(bench, script):
    matching, recipes = script("results").lines.matching, script("recipes").recipes
    return lambda names: list(bench.rows(matching(recipes(), names, ",")))


def test_parents_know_their_half_and_nothing_else(rows) -> None:
    first, second = rows("? alone")
    assert first.halves[0] > 0.8
    assert second.halves[1] > 0.8
    assert first.halves[1] is None
    assert second.halves[0] is None
    assert max(first.accuracy, second.accuracy) < 0.55


def test_plain_average_is_chance(rows) -> None:
    assert max(row.accuracy for row in rows("average*")) < 0.3


@pytest.mark.slow
def test_merge_beats_every_head_on_one_body(rows) -> None:
    *heads, unrefitted, merged = (row.accuracy for row in rows("head ?,zip,zip+refit"))
    assert merged > max(heads) + 0.03
    assert merged > unrefitted + 0.2


@pytest.mark.slow
def test_union_is_the_ensemble(bench) -> None:
    result = hm.merge(
        bench.models,
        bench.batches[:1],
        width="union",
        outputs="concat",
        progress=False,
        match="zip",
    )
    images = bench.task.images[:250]
    with torch.no_grad():
        wanted = torch.cat([model(images) for model in bench.models], dim=1)
        torch.testing.assert_close(result.model(images), wanted, atol=1e-4, rtol=1e-4)
