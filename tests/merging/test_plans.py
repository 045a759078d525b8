"""A plan is pure data: saved, read and applied again it gives the same bytes."""

import json
from pathlib import Path

import pytest
import torch
from families.vision import ResNet
from safetensors import safe_open
from torch import nn

import hetmerge as hm
from hetmerge import AlignmentPlan, InputError, PlanError


@pytest.fixture
def parents(make) -> list[nn.Module]:
    return [make(ResNet, [3, 2], 8), make(ResNet, [2, 1], 12, seed=1)]


def same(a: nn.Module, b: nn.Module) -> bool:
    old, new = a.state_dict(), b.state_dict()
    return old.keys() == new.keys() and all(torch.equal(old[k], new[k]) for k in old)


def equal(a: AlignmentPlan, b: AlignmentPlan) -> bool:
    simple = (
        "options",
        "parents",
        "inputs",
        "base",
        "stages",
        "slots",
        "notes",
        "blocks",
        "trials",
    )
    if any(getattr(a, name) != getattr(b, name) for name in simple) or a.samples != b.samples:
        return False
    pairs = zip(a.spaces, b.spaces, strict=True)
    return a.similarity == b.similarity and all(
        (x.name, x.width, x.free) == (y.name, y.width, y.free)
        and all(
            (i is None and j is None) or torch.equal(i, j)
            for i, j in zip(x.labels, y.labels, strict=True)
        )
        and x.readoff.keys() == y.readoff.keys()
        and all(torch.equal(x.readoff[m], y.readoff[m]) for m in x.readoff)
        for x, y in pairs
    )


OPTIONS = {
    "default": {},
    "all given": {
        "depth": "layer", "match": "permute", "alpha": 0.3, "beta": 0.5, "width": "union",
        "weights": [0.25, 0.75], "refit": False, "repair": "bn", "seed": 4,
    },
    "auto": {"match": "auto", "outputs": "concat"},
    "selection": {"match": "select", "importance": "weights"},
    "widths by name": {"match": "zip", "width": {"default": 1.25, "stem.0": 9}},
    "labels": {"match": "zip", "labels": [["a", "b", "c", "d", "e"], ["c", "d", "e", "f", "g"]]},
}  # fmt: skip


@pytest.mark.parametrize("name", OPTIONS)
def test_saved_plan_gives_the_same_bytes(name: str, parents, images, tmp_path: Path) -> None:
    options = OPTIONS[name]
    direct = hm.merge(parents, images, progress=False, **options)
    plan = hm.plan(parents, images, progress=False, **options)
    plan.save(tmp_path / "plan")
    again = AlignmentPlan.load(tmp_path / "plan")
    assert equal(plan, again)
    assert equal(plan, direct.plan)
    assert again.summary() == plan.summary()
    for one in (plan, again):
        result = hm.apply(one, parents, images, progress=False)
        assert same(result.model, direct.model)


def test_plan_in_a_checkpoint_gives_the_same_bytes(parents, images, tmp_path: Path) -> None:
    direct = hm.merge(parents, images, progress=False, match="zip")
    direct.save(tmp_path / "merged")
    plan = AlignmentPlan.load(tmp_path / "merged" / "plan")
    assert same(hm.apply(plan, parents, images, progress=False).model, direct.model)
    report = json.loads((tmp_path / "merged" / "report.json").read_text())
    assert report["merged_parameters"] == sum(p.numel() for p in direct.model.parameters())


def test_plan_holds_no_weights(parents, images, tmp_path: Path) -> None:
    hm.plan(parents, images, progress=False, match="zip").save(tmp_path / "plan")
    assert sorted(p.name for p in (tmp_path / "plan").iterdir()) == [
        "plan.json",
        "plan.safetensors",
    ]
    with safe_open(tmp_path / "plan" / "plan.safetensors", "pt") as file:
        kinds = {key.split("/")[0]: file.get_tensor(key).dtype for key in file.keys()}  # noqa: SIM118
    assert kinds == {"labels": torch.int32, "similarity": torch.float64}
    written = sum(p.stat().st_size for p in (tmp_path / "plan").iterdir())
    assert written < sum(p.numel() * 8 for m in parents for p in m.parameters()) / 4


def test_options_of_apply_override_the_plan(parents, images) -> None:
    plan = hm.plan(parents, images, progress=False, match="zip")
    result = hm.apply(plan, parents, refit=False, repair="none", progress=False)
    direct = hm.merge(parents, images, refit=False, progress=False, match="zip")
    with torch.no_grad():  # only the norms' statistics take batches
        assert torch.allclose(result.model(images[0]), direct.model(images[0]), rtol=1e-10)
    assert plan.options.refit
    only = hm.apply(plan, parents, refit=False, weights=[1, 0], progress=False)
    assert only.report.weights == [1.0, 0.0]


def test_refit_without_batches(parents, images) -> None:
    plan = hm.plan(parents, images, progress=False, match="zip")
    with pytest.raises(InputError) as caught:
        hm.apply(plan, parents, progress=False)
    assert str(caught.value) == (
        "batches: none given, but refit or repair needs calibration inputs; "
        "pass batches=, or refit=False and repair='none'"
    )


def test_exact_plan_needs_no_batches(parents, images) -> None:
    plan = hm.plan(parents, images, width="union", progress=False, match="zip")
    model = hm.apply(plan, parents, progress=False).model
    with torch.no_grad():
        wanted = sum(m(images[0]) for m in parents) / 2
        assert torch.allclose(model(images[0]), wanted, rtol=1e-10, atol=1e-12)


def test_plan_for_other_models(parents, images, make) -> None:
    plan = hm.plan(parents, images, progress=False, match="zip")
    other = make(ResNet, [3, 2], 12)
    with pytest.raises(PlanError, match=r"^models\[0\]: got ResNet with .* the plan was made for"):
        hm.apply(plan, [other, parents[1]], images)
    with pytest.raises(PlanError, match=r"^models\[0\]"):
        hm.apply(plan, parents[::-1], images)
    with pytest.raises(PlanError, match="^models: got 3; the plan was made for 2$"):
        hm.apply(plan, [*parents, other], images)


def test_wrong_arguments_of_apply(parents, images) -> None:
    plan = hm.plan(parents, images, progress=False, match="zip")
    wrong = {
        "models: got one module; allowed: ": {"models": parents[0]},
        "models[1]: got NoneType; allowed: ": {"models": [parents[0], None]},
        "batches: got one tensor; allowed: ": {"batches": images[0]},
        "weights: got 1 values for 2 models": {"weights": [1]},
        "repair: got 'all'; allowed: ": {"repair": "all"},
        "batches: one does not fit: ResNet cannot": {"batches": [images[0][:, :2]]},
    }
    for message, change in wrong.items():
        given = {"models": parents, "batches": images, **change}
        with pytest.raises(InputError) as caught:
            hm.apply(plan, progress=False, **given)
        assert str(caught.value).startswith(message)


def test_same_shapes_with_other_weights_are_allowed(parents, images, make) -> None:
    plan = hm.plan(parents, images, progress=False, match="zip")
    other = [make(ResNet, [3, 2], 8, seed=5), make(ResNet, [2, 1], 12, seed=6)]
    result = hm.apply(plan, other, images, progress=False)
    assert torch.isfinite(result.model(images[0])).all()


def edit(change):
    def damage(directory: Path) -> None:
        body = json.loads((directory / "plan.json").read_text())
        change(body)
        (directory / "plan.json").write_text(json.dumps(body))

    return damage


def cut(name: str):
    def damage(directory: Path) -> None:
        (directory / name).write_bytes((directory / name).read_bytes()[:-40])

    return damage


DAMAGES = {
    "plan is damaged": cut("plan.json"),
    "the plan is damaged": cut("plan.safetensors"),
    "no file plan.json": lambda d: (d / "plan.json").unlink(),
    "no file plan.safetensors": lambda d: (d / "plan.safetensors").unlink(),
    "version 2; this release reads 4": edit(lambda b: b.update(version=2)),
    "not a hetmerge plan": edit(lambda b: b.update(format="x")),
    "the plan was changed after it was written": edit(lambda b: b["spaces"][0].update(width=3)),
    "the plan was changed after": edit(lambda b: b["options"].update(alpha=0.9)),
}


@pytest.mark.parametrize("message", DAMAGES)
def test_damaged_plan(message: str, parents, images, tmp_path: Path) -> None:
    hm.plan(parents, images, progress=False, match="zip").save(tmp_path / "plan")
    DAMAGES[message](tmp_path / "plan")
    with pytest.raises(PlanError) as caught:
        AlignmentPlan.load(tmp_path / "plan")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_plan_that_cannot_be_written(parents, images, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    plan = hm.plan(parents, images, progress=False, match="zip")
    with pytest.raises(PlanError, match="cannot be written"):
        plan.save(tmp_path / "file")
    assert (tmp_path / "file").read_text() == ""


def test_batches_of_two_sizes_are_planned_and_applied(parents, images) -> None:
    uneven = [*images, images[0][:5]]
    direct = hm.merge(parents, uneven, progress=False, match="zip")
    plan = hm.plan(parents, uneven, progress=False, match="zip")
    assert same(hm.apply(plan, parents, uneven, progress=False).model, direct.model)
    assert plan.samples == 53
