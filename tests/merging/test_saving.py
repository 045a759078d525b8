"""What is saved comes back: the same tensors, the same outputs, and a model that trains."""

from pathlib import Path

import pytest
import torch
from families.plain import NormPerceptron, Tied, perceptron
from families.vision import Mobile, ResNet, vgg
from torch import Tensor, nn

import hetmerge as hm


class Sized(nn.Module):
    """Keeps its constructor arguments as attributes, so it needs no template."""

    def __init__(self, depth: int, width: int):
        super().__init__()
        self.depth, self.width = depth, width
        self.body = vgg([width] * depth)

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)


CASES = {
    "template": (ResNet, [([3, 2], 8), ([1, 2], 12)], "images", True),
    "deeper in one stage only": (ResNet, [([1, 3], 8), ([2, 1], 12)], "images", True),
    "attributes": (Sized, [(4, 8), (6, 4)], "images", False),
    "sequential": (vgg, [([8, 8, 8, 16, 16, 16],), ([12, 12, 20, 20],)], "images", False),
    "perceptron": (perceptron, [([8, 8, 8],), ([12, 12],)], "vectors", False),
    "grouped": (Mobile, [(3, 8, "group"), (2, 12, "group")], "images", True),
    "norms": (NormPerceptron, [(3, 8), (2, 12)], "vectors", True),
    "tied": (Tied, [(3, 8), (2, 12)], "tokens", True),
}


@pytest.mark.parametrize("case", CASES)
def test_round_trip(case: str, make, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    family, arguments, inputs, needs_template = CASES[case]
    batches = request.getfixturevalue(inputs)
    parents = [make(family, *a, seed=i) for i, a in enumerate(arguments)]
    result = hm.merge(parents, batches, progress=False, match="zip")
    result.save(tmp_path / "merged")
    template = None
    if needs_template:
        template = make(family, *arguments[result.plan.base], seed=7)
        before = {k: v.clone() for k, v in template.state_dict().items()}
    again = hm.load(tmp_path / "merged", template)
    old, new = result.model.state_dict(), again.state_dict()
    assert old.keys() == new.keys()
    for name, tensor in old.items():
        assert tensor.dtype == new[name].dtype
        assert torch.equal(tensor, new[name]), name
    with torch.no_grad():
        assert torch.equal(again(batches[0]), result.model(batches[0]))
    assert not again.training
    assert all(p.requires_grad for p in again.parameters())
    if template is not None:
        assert all(torch.equal(v, before[k]) for k, v in template.state_dict().items())
    assert sorted(p.name for p in tmp_path.iterdir()) == ["merged"]


def test_shortcut_without_parameters_becomes_a_convolution(make, images, tmp_path: Path) -> None:
    parents = [make(ResNet, [3, 2], 8, option="A"), make(ResNet, [2, 1], 12, seed=1, option="A")]
    result = hm.merge(parents, images, progress=False, match="zip")
    hm.save(result, tmp_path / "merged")
    assert result.report.replaced == ["layers.1.0.shortcut"]
    again = hm.load(tmp_path / "merged", make(ResNet, [3, 2], 8, option="A", seed=5))
    assert isinstance(again.layers[1][0].shortcut, nn.Conv2d)
    with torch.no_grad():
        assert torch.equal(again(images[0]), result.model(images[0]))


def test_tied_weights_stay_tied(make, tokens, tmp_path: Path) -> None:
    result = hm.merge(
        [make(Tied, 3, 8), make(Tied, 2, 12, seed=1)], tokens, progress=False, match="zip"
    )
    hm.save(result, tmp_path / "merged")
    again = hm.load(tmp_path / "merged", make(Tied, 3, 8))
    for model in (result.model, again):
        assert model.read.weight is model.embed.weight


class Doubled(nn.Module):
    """Its attribute is not its constructor argument."""

    def __init__(self, width: int):
        super().__init__()
        self.width = 2 * width
        self.body = vgg([width, width])

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x) * self.width


def test_attributes_that_mislead_are_not_trusted(make, images, tmp_path: Path) -> None:
    model = make(Doubled, 4)
    hm.save(model, tmp_path / "model")
    with pytest.raises(hm.CheckpointError, match="or pass template="):
        hm.load(tmp_path / "model")
    again = hm.load(tmp_path / "model", make(Doubled, 4, seed=3))
    with torch.no_grad():
        assert torch.equal(again(images[0]), model(images[0]))


def test_model_alone_is_saved_without_plan(make, images, tmp_path: Path) -> None:
    model = make(vgg, [8, 8])
    hm.save(model, tmp_path / "model")
    assert sorted(p.name for p in (tmp_path / "model").iterdir()) == [
        "hetmerge.json",
        "model.safetensors",
    ]
    again = hm.load(tmp_path / "model")
    with torch.no_grad():
        assert torch.equal(again(images[0]), model(images[0]))


def test_merged_model_trains(make, images) -> None:
    parents = [make(ResNet, [3, 2], 8), make(ResNet, [2, 1], 12, seed=1)]
    model = hm.merge(parents, images, progress=False, match="zip").model
    joined = torch.cat(images)
    with torch.no_grad():
        still = model(joined)
    model.train()
    for module in model.modules():  # running statistics that equal the batch's change nothing
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 0.0
    with torch.no_grad():
        moving = model(joined)
    assert float((moving - still).norm() / still.norm()) < 0.02
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    loss = nn.functional.cross_entropy(model(joined), torch.arange(48) % 5)
    loss.backward()
    optimizer.step()
    assert torch.isfinite(loss)
    for name, parameter in model.named_parameters():
        assert not torch.equal(parameter, before[name]) or not parameter.grad.any(), name
    assert sum(not torch.equal(p, before[n]) for n, p in model.named_parameters()) > 20
