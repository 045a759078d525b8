"""Merges that are narrower than a parent, in units that other parents lack too."""

import pytest
import torch
from families.vision import ResNet

import hetmerge as hm

hf = pytest.importorskip("families.pretrained")


def with_twins(model):
    """The model, whose MLPs have every unit twice."""
    with torch.no_grad():
        for layer in model.model.layers:
            for proj in (layer.mlp.gate_proj, layer.mlp.up_proj):
                half = len(proj.weight) // 2
                proj.weight[half:] = proj.weight[:half]
    return model


@pytest.mark.parametrize("match", ["select", "zip", "pca"])
def test_twins_in_layers_of_one_parent_cost_nothing(match) -> None:
    """Half of every MLP is enough, that of the layer which the other parent lacks as well."""
    models = [with_twins(hf.lively(hf.llama(3, 32), 1)), hf.lively(hf.llama(2, 32), 2)]
    models = [model.double() for model in models]
    batches, inner = hf.tokens(), models[0].config.intermediate_size // 2
    given = {"weights": (1, 0), "progress": False, "match": match, "refit": False}
    found = hm.merge(models, batches, architecture={"intermediate_size": inner}, **given)
    assert found.model.config.intermediate_size == inner
    assert len(found.model.model.layers) == 3
    with torch.no_grad():
        for batch in batches:
            wanted = models[0](**batch).logits
            torch.testing.assert_close(found.model(**batch).logits, wanted, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("match", ["zip", "select"])
def test_a_factor_below_one_narrows_every_unit(match, make, images) -> None:
    models = [make(ResNet, [3, 1], 8), make(ResNet, [1, 1], 8, seed=1)]
    plan = hm.plan(models, images, width=0.5, progress=False, match=match)
    alone = [s for s in plan.spaces if s.free and sum(x is not None for x in s.labels) == 1]
    assert alone
    for space in plan.spaces:
        if space.free:
            assert space.width == max(len(x) for x in space.labels if x is not None) // 2
    result = hm.apply(plan, models, images, progress=False)
    assert result.report.merged_parameters < min(result.report.parameters)
    assert result.report.fits


def test_one_to_one_cannot_narrow(make, images) -> None:
    models = [make(ResNet, [3, 1], 8), make(ResNet, [1, 1], 8, seed=1)]
    name = next(
        s.name
        for s in hm.plan(models, images, progress=False, match="permute").spaces
        if s.free and s.labels[1] is None
    )
    with pytest.raises(hm.InputError, match="'permute' cannot shrink a parent"):
        hm.plan(models, images, width={name: 4}, progress=False, match="permute")


def test_a_narrower_unit_of_one_parent_is_not_exact(make, images) -> None:
    """All else side by side: what that unit loses is still refitted."""
    models = [make(ResNet, [3, 1], 8), make(ResNet, [1, 1], 8, seed=1)]
    whole = hm.plan(models, images, width="union", progress=False, match="select")
    name = next(s.name for s in whole.spaces if s.free and s.labels[1] is None)
    found = hm.merge(
        models, images, width={"default": "union", name: 4}, progress=False, match="select"
    )
    assert found.report.fits
    assert not hm.apply(whole, models, images, progress=False).report.fits
