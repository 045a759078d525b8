"""Merges whose result is known: one parent of weight 1, a model with itself, and the union."""

import pytest
import torch
from families.plain import Encoder, NormPerceptron, Tied, perceptron
from families.vision import ConvNext, Mobile, PreActivation, ResNet, vgg
from torch import nn

import hetmerge as hm

# family, two members of different depth and width, inputs, the union is exact (None: refused,
# because torch's attention takes no heads whose sizes do not add up to the stream)
CASES = {
    "resnet": (ResNet, [([3, 2], 8), ([1, 2], 12)], "images", True),
    "resnet, bare shortcuts": (ResNet, [([3, 2], 8, 5, "A"), ([2, 1], 12, 5, "A")], "images", True),
    "depthwise and grouped": (Mobile, [(3, 8), (2, 12)], "images", True),
    "group norm": (Mobile, [(3, 8, "group"), (2, 12, "group")], "images", False),
    "pre-activation": (PreActivation, [(3, 8), (2, 12)], "images", True),
    "convnext": (ConvNext, [(3, 8), (2, 12)], "images", False),
    "vgg": (vgg, [([8, 8, 8, 16, 16, 16],), ([12, 12, 20, 20],)], "images", True),
    "perceptron": (perceptron, [([8, 8, 8],), ([12, 12],)], "vectors", True),
    "norm perceptron": (NormPerceptron, [(3, 8), (2, 12)], "vectors", False),
    "encoder": (Encoder, [(3, 8, 2), (2, 12, 3)], "sequences", False),
    "encoder, other head size": (Encoder, [(3, 8, 2), (2, 12, 2)], "sequences", None),
    "tied": (Tied, [(3, 8), (2, 12)], "tokens", False),
}


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest, make):
    family, arguments, inputs, exact = CASES[request.param]
    parents = [make(family, *a, seed=i + 1) for i, a in enumerate(arguments)]
    return parents, request.getfixturevalue(inputs), exact


def distance(model: nn.Module, wanted: torch.Tensor, batch: torch.Tensor) -> float:
    with torch.no_grad():
        return float((model(batch) - wanted).abs().max() / wanted.abs().max())


def outputs(models, batch) -> list[torch.Tensor]:
    with torch.no_grad():
        return [model(batch) for model in models]


def test_weight_of_one_returns_the_parent(case) -> None:
    parents, batches, _ = case
    for kept, wanted in enumerate(outputs(parents, batches[0])):
        weights = [float(m == kept) for m in range(2)]
        result = hm.merge(
            parents, batches, weights=weights, refit=False, progress=False, match="zip"
        )
        assert distance(result.model, wanted, batches[0]) < 1e-8


def test_merged_with_itself_returns_itself(case) -> None:
    parents, batches, _ = case
    result = hm.merge([parents[0], parents[0]], batches, progress=False, match="zip")
    assert distance(result.model, outputs(parents, batches[0])[0], batches[0]) < 1e-8


def test_union_is_the_ensemble_where_no_norm_mixes_features(case) -> None:
    parents, batches, exact = case
    if exact is None:
        with pytest.raises(hm.PlanError, match="cannot run at its new sizes"):
            hm.merge(parents, batches, width="union", progress=False, match="zip")
        return
    result = hm.merge(parents, batches, width="union", weights=[1, 3], progress=False, match="zip")
    assert result.report.exact == exact
    a, b = outputs(parents, batches[0])
    if exact:
        assert distance(result.model, (a + 3 * b) / 4, batches[0]) < 1e-10
    else:
        assert result.report.fits


def test_three_parents(make, images) -> None:
    shapes = [([3, 1], 8), ([2, 2], 12), ([1, 1], 4)]
    parents = [make(ResNet, *shape, seed=i) for i, shape in enumerate(shapes)]
    result = hm.merge(parents, images, width="union", progress=False, match="zip")
    wanted = sum(outputs(parents, images[0])) / 3
    assert distance(result.model, wanted, images[0]) < 1e-10
    for kept in range(3):
        weights = [float(m == kept) for m in range(3)]
        result = hm.merge(parents, images, weights=weights, progress=False, match="zip")
        assert distance(result.model, outputs(parents, images[0])[kept], images[0]) < 1e-8


def test_scale_of_activations_does_not_matter(make, images) -> None:
    """Deviations far below 1e-4 are matched like any others."""
    parent = make(vgg, [8, 8, 16, 16])
    with torch.no_grad():
        for module in parent.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight.mul_(1e-5)
                module.bias.mul_(1e-5)
    result = hm.merge([parent, parent], images, refit=False, progress=False, match="zip")
    assert distance(result.model, outputs([parent], images[0])[0], images[0]) < 1e-8
