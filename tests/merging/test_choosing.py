"""match="auto": averages for parents that do the same, a selection for parents that do not."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import hetmerge as hm
from hetmerge.batches import as_call
from hetmerge.choosing import SAMPLES, split
from hetmerge.dial import match_within
from hetmerge.matching import Matching
from hetmerge.options import Options
from hetmerge.random_half import random_half

EXACT = 1e-6  # trials are rounded to six decimals
CLOSE = 1e-8
INPUTS, FEATURES = 8, 12


class Net(nn.Module):
    """Two hidden layers."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Linear(INPUTS, FEATURES), nn.ReLU(), nn.Linear(FEATURES, FEATURES), nn.ReLU()
        )
        self.head = nn.Linear(FEATURES, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))


def batches() -> list[Tensor]:
    random = torch.Generator().manual_seed(5)
    return list(torch.randn(400, INPUTS, dtype=torch.float64, generator=random).split(100))


def same_task() -> list[nn.Module]:
    """A network, and a copy whose units stand in another order and whose weights are disturbed."""
    torch.manual_seed(0)
    a, b = Net().double().eval(), Net().double().eval()
    first, second = torch.randperm(FEATURES), torch.randperm(FEATURES)
    state = {name: tensor.clone() for name, tensor in a.state_dict().items()}
    for name in ("body.0.weight", "body.0.bias"):
        state[name] = state[name][first]
    state["body.2.weight"] = state["body.2.weight"][second][:, first]
    state["body.2.bias"] = state["body.2.bias"][second]
    state["head.weight"] = state["head.weight"][:, second]
    b.load_state_dict({k: x + 0.1 * x.std() * torch.randn_like(x) for k, x in state.items()})
    return [a, b]


def disjoint() -> list[nn.Module]:
    """Networks that read different inputs; half of their units see only noise, and nothing reads
    them: what is read of both fits into one network."""
    torch.manual_seed(1)
    found: list[nn.Module] = []
    for inputs, noise in (([0, 1, 2], [6]), ([3, 4, 5], [7])):
        net = Net().double().eval()
        with torch.no_grad():
            live = torch.zeros(2, FEATURES, dtype=torch.bool)
            for row in live:
                row[torch.randperm(FEATURES)[: FEATURES // 2]] = True
            own = torch.zeros(FEATURES, INPUTS)
            own[live[0].nonzero(), inputs] = 2.0
            own[(~live[0]).nonzero(), noise] = 2.0
            net.body[0].weight.mul_(own)
            net.body[2].weight.mul_(live[1][:, None] == live[0])
            net.head.weight.mul_(live[1])
        found.append(net)
    return found


def test_averages_for_parents_of_one_task() -> None:
    plan = hm.plan(same_task(), batches(), match="auto", progress=False)
    trials = plan.trials
    assert 1 - max(trials["permute"], trials["zip"]) < 0.5 * (1 - trials["select"])
    assert all(not space.readoff for space in plan.spaces)
    assert any("match='auto' took" in note for note in plan.notes)


def test_a_selection_for_parents_with_nothing_in_common() -> None:
    parents = disjoint()
    result = hm.merge(parents, batches(), match="auto", outputs="concat", progress=False)
    trials = result.plan.trials
    assert trials["select"] > 0.99  # the head's ridge costs the rest
    assert trials["select"] > max(trials["permute"], trials["zip"]) + 0.05
    free = [space for space in result.plan.spaces if space.free]
    assert all(space.readoff for space in free)
    plain = hm.merge(
        parents, batches(), match="auto", outputs="concat", refit=False, progress=False
    )
    assert plain.plan.trials["select"] == pytest.approx(1, abs=EXACT)
    x = batches()[0]
    with torch.no_grad():
        wanted = torch.cat([parent(x) for parent in parents], 1)
        torch.testing.assert_close(plain.model(x), wanted, atol=CLOSE, rtol=CLOSE)


@pytest.mark.parametrize("outputs", ["average", "concat"])
def test_shares_are_those_of_merges_made_by_hand(outputs: str) -> None:
    parents, given = same_task(), batches()
    weights = [0.25, 0.75]
    plan = hm.plan(parents, given, match="auto", outputs=outputs, weights=weights, progress=False)
    x = torch.cat(given[1::2])
    with torch.no_grad():
        logits = [parent(x) for parent in parents]
    if outputs == "average":
        wanted = 0.25 * logits[0] + 0.75 * logits[1]
    else:
        wanted = torch.cat([(z - z.mean()) / z.std() for z in logits], 1)
    for match, share in plan.trials.items():
        one = hm.plan(parents, given[::2], match=match, outputs=outputs, weights=weights)
        model = hm.apply(one, parents, given[::2]).model
        with torch.no_grad():
            error = (model(x) - wanted).square().sum(0)
        spread = (wanted - wanted.mean(0)).square().sum(0)
        pairs = zip(error.split(3), spread.split(3), strict=True)
        each = [1 - float(e.sum() / s.sum()) for e, s in pairs]
        assert share == pytest.approx((sum(each) / len(each) + min(each)) / 2, abs=EXACT)


@pytest.mark.parametrize(("pair", "outputs"), [(same_task, "average"), (disjoint, "concat")])
def test_order_of_parents_does_not_matter(pair, outputs: str) -> None:
    a, b = pair()
    one = hm.plan([a, b], batches(), match="auto", outputs=outputs, progress=False).trials
    two = hm.plan([b, a], batches(), match="auto", outputs=outputs, progress=False).trials
    best = max(one, key=lambda name: one[name])
    assert best == max(two, key=lambda name: two[name])
    assert one[best] == pytest.approx(two[best], abs=10 * EXACT)


def test_nothing_is_tried_where_nothing_is_lost() -> None:
    plan = hm.plan(same_task(), batches(), match="auto", width="union", progress=False)
    assert plan.trials == {}


def test_permute_is_no_candidate_below_the_widest_parent() -> None:
    plan = hm.plan(same_task(), batches(), match="auto", width=0.5, progress=False)
    assert list(plan.trials) == ["zip", "select"]


def test_trials_survive_saving(tmp_path: Path) -> None:
    parents = disjoint()
    plan = hm.plan(parents, batches(), match="auto", outputs="concat", progress=False)
    plan.save(tmp_path)
    again = hm.AlignmentPlan.load(tmp_path)
    assert again.trials == plan.trials
    models = [hm.apply(p, parents, batches(), progress=False).model for p in (plan, again)]
    for name, tensor in models[0].state_dict().items():
        assert torch.equal(tensor, models[1].state_dict()[name]), name


def test_no_input_serves_for_making_and_judging() -> None:
    calls = [as_call(torch.full((200, 1), float(i))) for i in range(9)]
    made, judged = split(calls)
    values = [{float(call[0][0][0, 0]) for call in part} for part in (made, judged)]
    assert not values[0] & values[1]
    assert all(200 * len(part) >= SAMPLES for part in values)
    assert split(calls[:1]) == (calls[:1], calls[:1])


def test_a_random_half_of_every_parent_is_the_control() -> None:
    parents = disjoint()
    drawn = random_half(parents, batches(), outputs="concat", progress=False)
    for space in (s for s in drawn.plan.spaces if s.free):
        kept = [int((labels >= 0).sum()) for labels in space.labels if labels is not None]
        assert kept == [FEATURES // 2, FEATURES // 2]
    again = random_half(parents, batches(), outputs="concat", progress=False)
    other = random_half(parents, batches(), outputs="concat", progress=False, seed=1)
    heads = [r.model.state_dict()["head.weight"] for r in (drawn, again, other)]
    assert torch.equal(heads[0], heads[1])
    assert not torch.equal(heads[0], heads[2])
    chosen = hm.merge(parents, batches(), outputs="concat", match="select", progress=False)
    after = [result.report.fits[-1]["after"] for result in (drawn, chosen)]
    assert after[0] < after[1] - 0.01


def test_a_candidate_that_cannot_be_merged_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*names: str) -> None:
        def match(statistics: hm.Statistics, options: Options) -> Matching:
            if options.match in names:
                raise hm.PlanError(f"no {options.match} here")
            return match_within(statistics, options)

        monkeypatch.setattr("hetmerge.choosing.match_within", match)

    refuse("select")
    plan = hm.plan(same_task(), batches(), progress=False)
    assert list(plan.trials) == ["permute", "zip"]
    assert "match='auto': 'select' cannot be tried: no select here" in plan.notes
    monkeypatch.setattr("hetmerge.choosing.trial", lambda *_: refuse_all())
    with pytest.raises(hm.PlanError, match="^nothing can be built$"):
        hm.plan(same_task(), batches(), progress=False)


def test_a_refit_that_does_harm_is_told() -> None:
    """From as few rows as a layer has inputs."""
    few = [batch[:FEATURES] for batch in batches()[:2]]
    options = {"ridge": 1e-9, "progress": False}
    plan = hm.plan(same_task(), few, **options)
    (note,) = [note for note in plan.notes if "refit made the trial worse" in note]
    assert f"-> {max(plan.trials.values()):.4f} of the parents' outputs" in note
    assert "give more, or refit=False" in note
    many = hm.plan(same_task(), batches(), **options)
    alone = hm.plan(same_task(), few, refit=False, **options)
    for found in (many, alone):
        assert not any("refit made" in note for note in found.notes)
    unfitted = max(alone.trials.values())
    assert f"on other inputs, {unfitted:.4f} -> " in note


def refuse_all() -> float:
    raise hm.PlanError("nothing can be built")


def test_a_trial_knows_no_input_that_it_is_judged_by(monkeypatch: pytest.MonkeyPatch) -> None:
    """Read-offs that were fitted to few inputs would explain exactly these."""
    seen: list[set[float]] = []
    given = [torch.full((8, INPUTS), float(i)).double() + batches()[0][:8] / 9 for i in range(4)]

    def noted(statistics: hm.Statistics, options: Options) -> Matching:
        seen.append({round(float(call[0][0].mean())) for call in statistics.calls})
        return match_within(statistics, options)

    monkeypatch.setattr("hetmerge.choosing.match_within", noted)
    plan = hm.plan(disjoint(), given, outputs="concat", progress=False)
    assert seen == [{0, 2}] * 3
    assert plan.trials["select"] < 0.9999
    assert plan.samples == 32


@pytest.mark.parametrize("models", [[], None, Net(), [Net(), 3]])
def test_no_models_are_told_before_anything_is_tried(models: object) -> None:
    with pytest.raises(hm.InputError, match="^models"):
        hm.plan(models, batches(), progress=False)
