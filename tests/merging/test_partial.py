"""Partial merges: one trunk, one head per parent, and everything a model must do besides."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from families.vision import ResNet, vgg
from torch import Tensor, nn

import hetmerge as hm
from hetmerge.errors import CheckpointError, InputError, PlanError
from hetmerge.flops import flops_of
from hetmerge.page import render
from hetmerge.tracing import export

EXACT = 1e-8  # float64: a few hundred roundings of 1e-16, and refit's solves with condition 1e6

SHAPES = [([3, 2], 8), ([2, 1], 12)]


@pytest.fixture
def parents(make) -> list[nn.Module]:
    return [make(ResNet, *shape, seed=i) for i, shape in enumerate(SHAPES)]


def run(model: nn.Module, x: Tensor, **kwargs: object) -> Tensor:
    with torch.no_grad():
        return model(x, **kwargs)


def gap(found: Tensor, wanted: Tensor) -> float:
    return float((found - wanted).abs().max() / wanted.abs().max())


@pytest.mark.parametrize(
    ("stop_at", "depth"), [(1, "segment"), ("layers.0.2", "segment"), (6, "segment"), (3, "tail")]
)
def test_union_is_the_ensemble(stop_at, depth, parents, images) -> None:
    """Also where one parent has no unit at the cut, but has one behind it (tail)."""
    result = hm.merge(
        parents, images, width="union", depth=depth, stop_at=stop_at, progress=False, match="zip"
    )
    assert result.report.exact
    each = [run(p, images[0]) for p in parents]
    assert gap(run(result.model, images[0]), sum(each) / 2) < EXACT
    for name, wanted in zip(("parent0", "parent1"), each, strict=True):
        assert gap(run(result.model, images[0], head=name), wanted) < EXACT
        assert gap(run(result.model.branch(name), images[0]), wanted) < EXACT


@pytest.mark.parametrize("match", ["zip", "select"])
def test_self_merge_keeps_the_function(match, parents, images) -> None:
    a = parents[0]
    result = hm.merge([a, copy.deepcopy(a)], images, match=match, stop_at=3, progress=False)
    assert gap(run(result.model, images[0]), run(a, images[0])) < EXACT


def test_outputs_that_all_parents_have_are_not_scaled(parents, images) -> None:
    """In whatever order they stand; as refit treats those of a whole merge."""
    labels = [["a", "b", "c", "d", "e"], ["e", "d", "c", "b", "a"]]
    result = hm.merge(parents, images, stop_at=3, labels=labels, progress=False, match="zip")
    each = [run(result.model, images[0], head=name) for name in ("parent0", "parent1")]
    assert gap(run(result.model, images[0]), (each[0] + each[1].flip(1)) / 2) < EXACT


def test_heads_refit_towards_their_parent(parents, images) -> None:
    """Behind the cut every head answers more like its parent once it is solved for the trunk."""
    errors = {}
    for refit in (True, False):
        result = hm.merge(
            parents, images, stop_at=3, outputs="concat", refit=refit, progress=False, match="zip"
        )
        errors[refit] = [
            gap(run(result.model, images[0], head=f"parent{m}"), run(p, images[0]))
            for m, p in enumerate(parents)
        ]
        fitted = {name for fit in result.report.fits for name in fit["layers"]}
        assert ("parent1.head" in fitted) == refit
        assert "layers.1.1.conv1" not in fitted
    assert max(errors[True]) < min(errors[False]) / 2


def test_outputs_stand_side_by_side_as_the_heads_give_them(parents, images) -> None:
    result = hm.merge(
        parents, images, stop_at=2, outputs="concat", refit=False, progress=False, match="zip"
    )
    each = [run(result.model, images[0], head=name) for name in result.model.heads]
    assert torch.equal(run(result.model, images[0]), torch.cat(each, 1))


def test_refit_reads_the_parents_features_better(parents, images) -> None:
    plan = hm.plan(parents, images, stop_at=2, progress=False, match="zip")
    own = [unit for unit in plan.slots[1][0][:2] if unit is not None][-1]
    seen: list[Tensor] = []
    hook = parents[1].layers[0][own].register_forward_hook(lambda _m, _i, y: seen.append(y))
    run(parents[1], images[0])
    hook.remove()
    fitted, plain = (
        hm.apply(plan, parents, images, refit=refit, progress=False).model
        for refit in (True, False)
    )
    with torch.no_grad():
        (stream,) = fitted.trunk(images[0])
        errors = [gap(m.heads["parent1"].read(stream), seen[0]) for m in (fitted, plain)]
    assert errors[0] < 0.8 * errors[1]


def test_refitted_outputs_side_by_side_are_scaled_to_each_other(result, parents, images) -> None:
    each = []
    for m, parent in enumerate(parents):
        theirs = torch.cat([run(parent, x) for x in images])
        mine = run(result.model, images[0], head=f"parent{m}")
        each.append((mine - theirs.mean()) / theirs.std())
    assert gap(run(result.model, images[0]), torch.cat(each, 1)) < EXACT


def test_heads_are_called_as_asked(parents, images, tmp_path: Path) -> None:
    names = ["cats", "dogs"]
    result = hm.merge(parents, images, stop_at=2, names=names, progress=False, match="zip")
    assert list(result.model.heads) == names
    plain = hm.merge(parents, images, stop_at=2, progress=False, match="zip")
    assert torch.equal(
        run(result.model, images[0], head="dogs"), run(plain.model, images[0], head="parent1")
    )
    assert "dogs.head" in {name for fit in result.report.fits for name in fit["layers"]}
    result.save(tmp_path / "merged")
    assert list(hm.load(tmp_path / "merged").heads) == names
    assert hm.AlignmentPlan.load(tmp_path / "merged" / "plan").options.names == names


@pytest.mark.parametrize(
    ("names", "says"),
    [
        (["a"], "names: got 1 for 2 models"),
        (["a", "a"], "allowed: different Python identifiers"),
        (["a.b", "c"], "names: got"),
        (["keys", "c"], "names: got"),
        ("ab", "names: got 'ab'"),
        ([0, 1], "names: got"),
    ],
)
def test_bad_names(names, says, parents, images) -> None:
    with pytest.raises(InputError, match=says):
        hm.plan(parents, images, stop_at=2, names=names, progress=False, match="zip")


def test_shared_names_are_averaged_by_weight(parents, images) -> None:
    labels = [["a", "b", "c", "d", "e"], ["e", "f", "a", "g", "h"]]
    result = hm.merge(
        parents,
        images,
        stop_at=2,
        labels=labels,
        weights=[3, 1],
        refit=False,
        progress=False,
        match="zip",
    )
    y, z = (run(result.model, images[0], head=name) for name in result.model.heads)
    wanted = torch.cat([y, z[:, [1, 3, 4]]], 1)
    wanted[:, 0] = 0.75 * y[:, 0] + 0.25 * z[:, 2]
    wanted[:, 4] = 0.75 * y[:, 4] + 0.25 * z[:, 0]
    assert gap(run(result.model, images[0]), wanted) < EXACT


@pytest.fixture
def result(parents, images) -> hm.MergeResult:
    return hm.merge(
        parents, images, stop_at="layers.0.1", outputs="concat", match="select", progress=False
    )


def test_round_trip_without_a_template(result, images, tmp_path: Path) -> None:
    result.save(tmp_path / "merged")
    again = hm.load(tmp_path / "merged")
    old, new = result.model.state_dict(), again.state_dict()
    assert old.keys() == new.keys()
    assert all(torch.equal(tensor, new[name]) for name, tensor in old.items())
    for inputs in (images[0], torch.cat(images)):  # batches of any size
        assert torch.equal(run(again, inputs), run(result.model, inputs))
    fresh = copy.deepcopy(again)
    for parameter in fresh.parameters():
        parameter.data.zero_()
    fresh.load_state_dict(old)
    assert torch.equal(run(fresh, images[0]), run(again, images[0]))
    plan = hm.AlignmentPlan.load(tmp_path / "merged" / "plan")
    assert plan.options.stop_at == "layers.0.1"


def test_files_cannot_name_other_operators(result, tmp_path: Path) -> None:
    result.save(tmp_path / "merged")
    path = tmp_path / "merged" / "hetmerge.json"
    text = path.read_text()
    for bad in ("aten.from_file.default", "operator.attrgetter", "aten.relu_.default"):
        path.write_text(text.replace("aten.relu.default", bad))
        with pytest.raises(CheckpointError):
            hm.load(tmp_path / "merged")


@pytest.mark.parametrize("head", [None, "parent1"])
def test_export(head, result, images) -> None:
    chosen = {} if head is None else {"head": head}
    program = torch.export.export(result.model, (images[0],), chosen)
    found = run(program.module(), images[0], **chosen)
    assert gap(found, run(result.model, images[0], head=head)) < EXACT


def test_trains_and_leaves_the_parents_alone(parents, images) -> None:
    before = [copy.deepcopy(p.state_dict()) for p in parents]
    parents[0].stem.requires_grad_(False)
    model = hm.merge(parents, images, stop_at=2, progress=False, match="zip").model
    frozen = [name for name, p in model.named_parameters() if not p.requires_grad]
    assert frozen == [name for name in dict(model.named_parameters()) if ".stem." in name]
    assert len(frozen) == 4
    model(images[0]).square().mean().backward()
    learned = [p for p in model.parameters() if p.requires_grad]
    assert all(p.grad is not None for p in learned)
    with torch.no_grad():
        for p in learned:
            p.add_(1.0)
    for parent, state in zip(parents, before, strict=True):
        assert all(torch.equal(v, state[k]) for k, v in parent.state_dict().items())


def test_report_counts_the_work(result, parents, images) -> None:
    report, call = result.report, ((images[0],), {})
    layer = nn.Conv2d(3, 8, 3, padding=1, bias=False).double()
    assert flops_of(export(layer, *call), call) == 2 * 27 * 8 * 64
    assert report.flops == [flops_of(export(p, *call), call) for p in parents]
    assert max(report.flops) < report.merged_flops
    assert f"{report.merged_flops / 1e6:,.4g}" in render(report, result.plan)
    assert report.merged_parameters == sum(p.numel() for p in result.model.parameters())
    assert "stop at layers.0.1" in result.plan.summary()
    scores = result.compare(parents, lambda m: float(run(m, images[0]).mean()))
    wanted = run(result.model, images[0], head="parent1").mean()
    assert scores["merged, head parent1"]["score"] == pytest.approx(float(wanted))


class Skip(nn.Module):
    """The head reads the stem as well."""

    def __init__(self, depth: int) -> None:
        super().__init__()
        self.stem = nn.Linear(6, 8)
        self.blocks = nn.Sequential(
            *(nn.Sequential(nn.Linear(8, 8), nn.ReLU()) for _ in range(depth))
        )
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        return self.head(self.blocks(x) * torch.sigmoid(x))


def test_what_else_crosses_is_named(make, vectors) -> None:
    parents = [make(Skip, 3), make(Skip, 2, seed=1)]
    with pytest.raises(PlanError, match="behind 'blocks.1', merged network|behind 'blocks.1'"):
        hm.plan(parents, vectors, stop_at=2, progress=False, match="zip")


@pytest.mark.parametrize(
    ("stop_at", "error", "says"),
    [
        (0, InputError, "stop_at: got 0; allowed: a number of units from 1"),
        (True, InputError, "stop_at: got True"),
        ("", InputError, "stop_at: got ''"),
        (9, PlanError, "stop_at: got 9; allowed: 1 to 6"),
        ("layers.7", PlanError, "layers.0.0, layers.0.1"),
    ],
)
def test_bad_places(stop_at, error, says, parents, images) -> None:
    with pytest.raises(error, match=says):
        hm.plan(parents, images, stop_at=stop_at, progress=False, match="zip")


def test_plain_networks(make, images) -> None:
    parents = [make(vgg, [8, 8, 8, 16]), make(vgg, [12, 12, 20], seed=1)]
    result = hm.merge(parents, images, width="union", stop_at=2, progress=False, match="zip")
    wanted = sum(run(p, images[0]) for p in parents) / 2
    assert gap(run(result.model, images[0]), wanted) < EXACT
    with pytest.raises(InputError, match="head: got 'a'; allowed: parent0, parent1"):
        run(result.model, images[0], head="a")
