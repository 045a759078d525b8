"""What a merge tells: agreement of features, scores, the page."""

import json
import re
from pathlib import Path

import pytest
import torch
from families.vision import ResNet
from torch import nn

import hetmerge as hm
from hetmerge.agreement import BINS, Agreement, agreement, sentence
from hetmerge.errors import InputError
from hetmerge.page import render


@pytest.fixture
def result(make, images) -> hm.MergeResult:
    parents = [make(ResNet, [3, 2], 8), make(ResNet, [2, 1], 12, seed=1)]
    return hm.merge(parents, images, progress=False, match="zip")


def test_agreement_counts_every_pair_once() -> None:
    similarity = torch.tensor(
        [
            [1.0, 0.96, 0.12, -1.0, 0.3],
            [0.96, 1.0, 0.52, 0.2, 0.3],
            [0.12, 0.52, 1.0, 0.2, 0.3],
            [-1.0, 0.2, 0.2, 1.0, 0.3],
            [0.3, 0.3, 0.3, 0.3, 1.0],
        ]
    )
    labels = {0: torch.tensor([0, 0]), 2: torch.tensor([0, 1, -1])}
    found = agreement(similarity, {0: 2, 2: 3}, labels)
    assert sum(found.within) == 1
    assert found.within[19] == 1  # .96 lies in the last of 20 bins
    assert sum(found.across) == 2
    assert (found.across[11], found.across[15]) == (1, 1)
    assert found.mean == pytest.approx((0.12 + 0.52) / 2)
    nothing = agreement(similarity[:2, :2], {0: 2}, {0: torch.tensor([-1, -1])})
    assert (sum(nothing.across), sum(nothing.within), nothing.mean) == (0, 0, None)


@pytest.mark.parametrize(
    ("mean", "chance", "says"),
    [(0.9, 0.12, "much the same"), (0.4, 0.2, "share part"), (0.22, 0.2, "next to nothing")],
)
def test_sentence_compares_with_chance(mean: float, chance: float, says: str) -> None:
    many, few = [0] * BINS, [0] * BINS
    many[10], few[10] = 1000, 1
    found = [Agreement(many, [], mean, chance), Agreement(few, [], 1.0, 0.0)]
    assert says in sentence(found)
    assert "No features" in sentence([])


def test_page_is_complete_and_stands_alone(result: hm.MergeResult, tmp_path: Path) -> None:
    result.save(tmp_path / "out")
    page = (tmp_path / "out" / "report.html").read_text()
    assert page == render(result.report, result.plan)
    assert page.count("<svg") == 3  # depth, width, refit
    assert not re.search(r'(src|href)="(?!#|data:)', page)
    for space in result.report.spaces:
        if space.free and None not in space.sizes:
            assert f"<td>{space.name}</td>" in page
    for fit in result.report.fits:
        assert fit["layers"][0] in page
    saved = json.loads((tmp_path / "out" / "report.json").read_text())
    assert saved["spaces"][0].keys() >= {"agreement", "sizes", "width"}


def test_scores_of_parents_ensemble_and_result(result: hm.MergeResult, make, images) -> None:
    parents = [make(ResNet, [3, 2], 8), make(ResNet, [2, 1], 12, seed=1)]

    def evaluate(model: nn.Module) -> dict[str, float]:
        assert not model.training
        with torch.no_grad():
            return {"mean": float(model(images[0]).mean()), "one": 1.0}

    parents[0].train()
    scores = result.compare(parents, evaluate)
    assert parents[0].training
    assert list(scores) == ["parent 0", "parent 1", "ensemble", "merged"]
    each = [scores[f"parent {m}"]["mean"] for m in range(2)]
    assert scores["ensemble"]["mean"] == pytest.approx(sum(each) / 2, abs=1e-6)
    page = render(result.report, result.plan)
    assert f"{scores['merged']['mean']:.4g}" in page


def test_evaluation_that_fails_says_for_whom(result: hm.MergeResult, make) -> None:
    parents = [make(ResNet, [3, 2], 8), make(ResNet, [2, 1], 12, seed=1)]

    def broken(model: nn.Module) -> float:
        raise KeyError("images")

    with pytest.raises(InputError, match="evaluate: raised KeyError for parent 0"):
        result.compare(parents, broken)
    with pytest.raises(InputError, match="evaluate: returned str for parent 0"):
        result.compare(parents, lambda model: "good")  # type: ignore[arg-type, return-value]
    assert result.report.scores == {}


def test_parents_with_nothing_in_common_are_no_better_than_chance(make, images) -> None:
    same = hm.plan([make(ResNet, [2, 1], 8)] * 2, images, progress=False, match="zip")
    other = hm.plan(
        [make(ResNet, [2, 1], 8), make(ResNet, [2, 1], 8, seed=1)],
        images,
        progress=False,
        match="zip",
    )
    for plan in (same, other):
        for space in plan.spaces:
            if space.agreement is not None and sum(space.agreement.across):
                assert space.agreement.chance is not None
                assert space.agreement.chance < 0.9
    means = [
        [s.agreement.mean for s in plan.spaces if s.agreement and s.agreement.mean is not None]
        for plan in (same, other)
    ]
    assert min(means[0]) > 0.999
    assert max(means[1]) < 0.999
