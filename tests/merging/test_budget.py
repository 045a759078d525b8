"""A budget: what it costs is exact, it is never exceeded, and what it chooses is best."""

import re
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from families.plain import perceptron
from families.vision import ResNet
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import hetmerge as hm
from hetmerge import InputError
from hetmerge.allocation import allocate
from hetmerge.calibration import calibrate
from hetmerge.curves import Curves
from hetmerge.dial import AMPLE, match_within, problem_of
from hetmerge.dials import Dial, dials_of
from hetmerge.options import Options
from hetmerge.planning import setting_of
from hetmerge.width_cost import flop_cost, parameter_cost

ROUNDING = 1e-9  # sums of a few shares of 1


@pytest.fixture
def parents(make) -> list[nn.Module]:
    return [make(ResNet, [2, 1], 6), make(ResNet, [1, 1], 8, seed=1)]


@pytest.fixture
def small(make) -> list[nn.Module]:
    return [make(perceptron, [4, 3]), make(perceptron, [5, 4], seed=1)]


def count(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def flops(model: nn.Module, x: torch.Tensor) -> float:
    """As torch counts convolutions and matrix products, per input."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(x)
    return counter.get_total_flops() / len(x)


def predicted(plan: hm.AlignmentPlan) -> tuple[float, float]:
    """Loss and bound of the plan's note."""
    found = re.search(r"predicted loss ([\d.]+), .* less than ([\d.]+)$", plan.notes[-1])
    assert found is not None
    return float(found[1]), float(found[2])


def dials_and_losses(matcher: Curves) -> tuple[list[Dial], list[torch.Tensor]]:
    """Of every space that can be chosen; loss at each of its widths."""
    spaces, dials = matcher.setting.skeleton.graph.spaces, dials_of(matcher)
    return dials, [matcher.losses(spaces[d.spaces[0]], d.widths) for d in dials]


WIDTHS = ["max", "union", 0.75, {"default": 1.25, "stem.0": 9}]


@pytest.mark.parametrize("width", WIDTHS, ids=str)
def test_cost_is_that_of_the_merged_model(width, parents, images) -> None:
    plan = hm.plan(parents, images, width=width, progress=False, match="zip")
    setting, partitions = setting_of(plan, parents)
    widths = {s.index: s.size for s in setting.skeleton.graph.spaces}
    widths |= {k: p.width for k, p in partitions.items()}
    merged = hm.apply(plan, parents, images, refit=False, progress=False).model
    assert parameter_cost(setting.skeleton).at(widths) == count(merged)
    assert flop_cost(setting.skeleton, setting.call).at(widths) == flops(merged, images[0])


@pytest.mark.parametrize("match", ["zip", "permute", "select", "identity"])
def test_budget_is_met_and_the_plan_can_be_kept(match, parents, images, tmp_path: Path) -> None:
    even = hm.merge(parents, images, match=match, refit=False, progress=False).model
    limit = round(1.2 * count(even))
    result = hm.merge(parents, images, match=match, budget={"parameters": limit}, progress=False)
    assert 0.95 * limit < count(result.model) <= limit
    assert f"budget: {count(result.model):,} of {limit:,} parameters" in result.plan.notes[-1]
    widths = {s.width / max(len(x) for x in s.labels if x is not None) for s in result.plan.spaces}
    assert len(widths) > 2  # not one factor for all
    result.plan.save(tmp_path / "plan")
    again = hm.apply(hm.AlignmentPlan.load(tmp_path / "plan"), parents, images, progress=False)
    mine, theirs = result.model.state_dict(), again.model.state_dict()
    assert all(torch.equal(mine[k], theirs[k]) for k in mine)


def test_budget_of_flops(parents, images) -> None:
    limit = flops(
        hm.merge(parents, images, refit=False, progress=False, match="zip").model, images[0]
    )
    result = hm.merge(parents, images, budget={"flops": limit}, progress=False, match="zip")
    assert 0.95 * limit < flops(result.model, images[0]) <= limit


@pytest.mark.parametrize("match", ["zip", "permute"])
@pytest.mark.parametrize("kind", ["parameters", "flops"])
def test_no_other_widths_are_predicted_better(match, kind, small, vectors) -> None:
    """Every combination of widths of two hidden layers, counted in the built tensors."""
    matcher = Curves(calibrate(small, vectors, progress=False), Options(match=match))
    matcher.match("max")
    dials, curves = dials_and_losses(matcher)
    least = [1, 1] if match == "zip" else [5, 4]
    assert [d.widths for d in dials] == [list(range(least[0], 10)), list(range(least[1], 8))]
    pairs = {
        (a, b): float(curves[0][i] + curves[1][j])
        for (i, a), (j, b) in product(*(enumerate(d.widths) for d in dials))
    }
    skeleton = matcher.setting.skeleton
    cost = (
        parameter_cost(skeleton)
        if kind == "parameters"
        else flop_cost(skeleton, matcher.setting.call)
    )
    fixed = {s.index: s.size for s in skeleton.graph.spaces}

    def real(a: int, b: int) -> int:
        biases = a + b + 5 if kind == "parameters" else 0
        return (6 * a + a * b + b * 5) * (1 if kind == "parameters" else 2) + biases

    before = float("inf")
    for limit in range(real(*least), real(9, 7), 7):
        found = allocate(problem_of(dials, curves, cost, fixed, limit))
        assert found is not None
        a, b = (d.widths[k] for d, k in zip(dials, found.choice, strict=True))
        best = min(loss for pair, loss in pairs.items() if real(*pair) <= limit)
        assert real(a, b) <= limit
        assert pairs[a, b] == pytest.approx(best, abs=ROUNDING)
        assert found.bound <= best + ROUNDING
        assert found.loss <= before
        before = found.loss
    assert before < 0.2


@pytest.mark.parametrize("match", ["zip", "select"])
def test_nothing_is_narrower_where_the_budget_is_ample(match, small, vectors) -> None:
    """The widths that training was given come first; below, one space may pay for another."""
    statistics = calibrate(small, vectors, progress=False)
    skeleton = statistics.setting.skeleton
    even = match_within(statistics, Options(match=match)).partitions
    sizes = {s.index: s.size for s in skeleton.graph.spaces}
    enough = parameter_cost(skeleton).at(sizes | {k: p.width for k, p in even.items()})
    for limit in range(round(0.4 * enough), round(2.2 * enough), 4):
        options = Options(match=match, budget={"parameters": limit})
        found = match_within(statistics, options).partitions
        changes = [found[k].width - partition.width for k, partition in even.items()]
        widths = sizes | {k: partition.width for k, partition in found.items()}
        assert parameter_cost(skeleton).at(widths) <= limit
        assert min(changes) >= 0 or limit < AMPLE * enough
    found = match_within(statistics, Options(match=match, budget={"parameters": enough})).partitions
    changes = [found[k].width - partition.width for k, partition in even.items()]
    assert min(changes) < 0 < max(changes)


def test_a_space_counts_once_per_layer_that_reads_it(small, vectors, monkeypatch) -> None:
    matcher = Curves(calibrate(small, vectors, progress=False), Options(match="zip"))
    matcher.match("max")
    _, once = dials_and_losses(matcher)
    reads = matcher.reads
    monkeypatch.setattr(matcher, "reads", lambda space: 2 * reads(space))
    _, twice = dials_and_losses(matcher)
    for a, b in zip(once, twice, strict=True):
        assert float(a[0]) > 0.3
        assert float(a[-1]) == 0.0
        torch.testing.assert_close(b, 2 * a, rtol=ROUNDING, atol=ROUNDING)


def test_above_union_is_union(parents, images) -> None:
    union = hm.plan(parents, images, width="union", progress=False, match="zip")
    found = hm.plan(parents, images, budget={"parameters": 10**9}, progress=False, match="zip")
    assert [s.width for s in found.spaces] == [s.width for s in union.spaces]
    assert predicted(found) == (0.0, 0.0)


def test_more_is_predicted_to_lose_less(parents, images) -> None:
    even = count(hm.merge(parents, images, refit=False, progress=False, match="zip").model)
    budgets = [round(factor * even) for factor in (0.7, 1.1, 1.6)]
    plans = [
        hm.plan(parents, images, budget={"parameters": b}, progress=False, match="zip")
        for b in budgets
    ]
    losses, bounds = zip(*map(predicted, plans), strict=True)
    assert losses[0] > losses[1] > losses[2]
    assert all(0.5 * loss < bound <= loss for loss, bound in zip(losses, bounds, strict=True))


def test_too_small_a_budget_names_the_smallest(parents, images) -> None:
    with pytest.raises(InputError, match="allowed: [0-9,]+ or more") as caught:
        hm.plan(parents, images, budget={"parameters": 10}, progress=False, match="zip")
    smallest = int(re.search(r"allowed: ([0-9,]+)", str(caught.value))[1].replace(",", ""))
    assert str(caught.value).startswith("budget: got 10 parameters")
    result = hm.merge(parents, images, budget={"parameters": smallest}, progress=False, match="zip")
    assert count(result.model) == smallest
    with pytest.raises(InputError):
        hm.plan(parents, images, budget={"parameters": smallest - 1}, progress=False, match="zip")


WRONG = [
    {"budget": 1000},
    {"budget": {}},
    {"budget": {"parameters": 10, "flops": 10}},
    {"budget": {"bytes": 10}},
    {"budget": {"parameters": True}},
    {"budget": {"flops": float("inf")}},
    {"budget": {"flops": 1e6}, "width": 1.5},
    {"budget": {"flops": 1e6}, "width": {"default": "max"}},
]


@pytest.mark.parametrize("options", WRONG, ids=str)
def test_wrong_budgets(options) -> None:
    with pytest.raises(InputError, match="^budget: got .*; allowed: "):
        Options.make(options)


def spent(kind: str, factor: float, match: str) -> tuple[Any, Any, int, int]:
    """Configurations at `max` and within a budget, parameters within it, and the budget."""
    hf = pytest.importorskip("families.pretrained")
    made = getattr(hf, kind)
    models = [hf.lively(made(depth, 32), seed) for seed, depth in enumerate((3, 2))]
    given = {"refit": False, "progress": False, "match": match}
    even = hm.merge(models, hf.tokens(), **given).model
    limit = round(factor * count(even))
    found = hm.merge(models, hf.tokens(), budget={"parameters": limit}, **given).model
    return even.config, found.config, count(found), limit


@pytest.mark.parametrize("match", ["zip", "pca"])
@pytest.mark.parametrize("factor", [0.7, 1.4])
def test_a_family_of_equal_units_stays_one(factor: float, match: str) -> None:
    """Configurations know one width for the stream, one for all MLPs, one number of heads."""
    even, found, size, limit = spent("llama", factor, match)
    assert 0.93 * limit < size <= limit
    names = ("hidden_size", "intermediate_size", "num_key_value_heads")
    changes = [getattr(found, name) - getattr(even, name) for name in names]
    assert any(changes)
    assert found.head_dim == even.head_dim
    if match == "zip" and factor > AMPLE:
        assert min(changes) >= 0


@pytest.mark.parametrize("match", ["pca", "select"])
def test_widths_go_both_ways(match: str) -> None:
    """At the size of `max` a wider stream may be paid for by narrower MLPs, or the reverse."""
    even, found, size, limit = spent("llama", 1.0, match)
    assert 0.93 * limit < size <= limit
    changes = [found.hidden_size - even.hidden_size, found.intermediate_size]
    changes[1] -= even.intermediate_size
    assert min(changes) < 0 < max(changes)


@pytest.mark.parametrize(("match", "fewest"), [("pca", 1), ("zip", 4)])
def test_numbers_of_heads_are_a_dial(match: str, fewest: int) -> None:
    """Of all layers together; those of one size in all parents."""
    hf = pytest.importorskip("families.pretrained")
    models = [hf.lively(hf.llama(2, 32, 4, 4), 0), hf.lively(hf.llama(2, 24, 3, 3), 1)]
    statistics = calibrate(models, hf.tokens(), progress=False)
    kinds = {dial.kind: dial for dial in dials_of(Curves(statistics, Options(match=match)))}
    assert kinds["heads"].widths == list(range(fewest, 8))
    assert len(kinds["heads"].spaces) == 2
    assert len(kinds["stream"].spaces) == 1
    other = [models[0], hf.lively(hf.llama(2, 24, 3, 3, head_dim=4), 1)]
    found = dials_of(Curves(calibrate(other, hf.tokens(), progress=False), Options(match=match)))
    assert "heads" not in {dial.kind for dial in found}


def test_a_stream_that_a_family_ties_to_its_heads_stays() -> None:
    even, found, size, limit = spent("gpt2", 0.8, "select")
    assert size <= limit
    assert found.n_embd == even.n_embd
    assert found.n_inner < 4 * even.n_embd
