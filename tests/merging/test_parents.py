"""A merge reads its parents and leaves no trace on them."""

import copy

import pytest
import torch
from families.plain import Tied
from families.vision import Mobile, ResNet
from torch import nn

import hetmerge as hm


def trace_of(model: nn.Module) -> dict[str, object]:
    """Everything about a module that a merge could have touched."""
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_state_dict_hooks")
    return {
        "training": {n: m.training for n, m in model.named_modules()},
        "types": {n: type(m) for n, m in model.named_modules()},
        "text": str(model),
        "hooks": {(n, h): list(getattr(m, h)) for n, m in model.named_modules() for h in hooks},
        "flags": {n: p.requires_grad for n, p in model.named_parameters()},
        "ids": {n: id(p) for n, p in model.named_parameters(remove_duplicate=False)},
        "places": {n: (b.data_ptr(), b.stride()) for n, b in model.state_dict().items()},
        "grads": {n: p.grad is None for n, p in model.named_parameters()},
    }


@pytest.mark.parametrize("options", [{}, {"width": "union"}, {"refit": False, "repair": "repair"}])
@pytest.mark.parametrize(
    ("family", "shapes", "inputs"),
    [
        (ResNet, [([3, 2], 8, 5, "A"), ([2, 1], 12, 5, "A")], "images"),
        (Mobile, [(2, 8, "group"), (1, 12, "group")], "images"),
        (Tied, [(3, 8), (2, 12)], "tokens"),
    ],
)
def test_parents_stay_as_they_were(family, shapes, inputs, options, make, request) -> None:
    parents = [make(family, *shape, seed=i) for i, shape in enumerate(shapes)]
    batches = request.getfixturevalue(inputs)
    parents[0].train()
    next(parents[1].parameters()).requires_grad_(False)
    seen = []
    next(parents[1].children()).register_forward_hook(lambda *_: seen.append(1))
    state = [copy.deepcopy(p.state_dict()) for p in parents]
    given = [batch.clone() for batch in batches]
    before = [trace_of(p) for p in parents]
    random = torch.random.get_rng_state()
    result = hm.merge(parents, batches, progress=False, **options)
    assert torch.equal(random, torch.random.get_rng_state())
    assert [trace_of(p) for p in parents] == before
    for parent, old in zip(parents, state, strict=True):
        assert all(torch.equal(v, old[k]) for k, v in parent.state_dict().items())
    assert all(torch.equal(a, b) for a, b in zip(batches, given, strict=True))
    mine = {p.data_ptr() for p in result.model.state_dict().values()}
    theirs = {p.data_ptr() for parent in parents for p in parent.state_dict().values()}
    assert not mine & theirs
    assert not result.model.training


def test_frozen_parameters_stay_frozen(make, images) -> None:
    parents = [make(ResNet, [2, 1], 8), make(ResNet, [1, 1], 12, seed=1)]
    parents[0].stem.requires_grad_(False)
    model = hm.merge(parents, images, progress=False, match="zip").model
    assert not any(p.requires_grad for p in model.stem.parameters())
    assert all(p.requires_grad for p in model.layers.parameters())


def test_same_batches_and_seed_give_the_same_bytes(make, images) -> None:
    parents = [make(ResNet, [2, 1], 8), make(ResNet, [1, 1], 12, seed=1)]
    first, second = (
        hm.merge(parents, images, seed=3, progress=False, match="zip").model for _ in range(2)
    )
    for name, tensor in first.state_dict().items():
        assert torch.equal(tensor, second.state_dict()[name]), name
