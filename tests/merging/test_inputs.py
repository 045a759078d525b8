"""Wrong arguments: one line says what was given and what is allowed; parents stay as they were."""

import copy
from collections.abc import Callable

import pytest
import torch
from families.plain import perceptron
from families.vision import ResNet, vgg
from torch import nn

import hetmerge as hm

MODELS, X = object(), object()  # stand for two good parents and their batches


@pytest.fixture
def refused(make, images) -> Callable[..., str]:
    """refused(models, batches, **options): the message of the error that merge raises."""
    parents = [make(ResNet, [2, 1], 8), make(ResNet, [1, 1], 12, seed=1)]

    def call(models=MODELS, batches=X, **options) -> str:
        models = parents if models is MODELS else models
        batches = images if batches is X else batches
        modules = (
            [m for m in models if isinstance(m, nn.Module)] if isinstance(models, list) else []
        )
        before = [copy.deepcopy(m.state_dict()) for m in modules]
        flags = [[x.training for x in m.modules()] for m in modules]
        with pytest.raises(hm.HetmergeError) as caught:
            hm.merge(models, batches, progress=False, **options)
        for model, state, training in zip(modules, before, flags, strict=True):
            for name, tensor in model.state_dict().items():
                assert torch.equal(tensor.nan_to_num(), state[name].nan_to_num()), name
            assert [x.training for x in model.modules()] == training
        assert "\n" not in str(caught.value)
        return f"{type(caught.value).__name__}: {caught.value}"

    return call


OPTIONS = {
    "depth": ("deep", "depth: got 'deep'; allowed: segment, layer, uniform, head, tail"),
    "match": ("zipp", "match: got 'zipp'; allowed: auto, zip, permute, select, pca, identity"),
    "outputs": ("sum", "outputs: got 'sum'; allowed: average, concat"),
    "repair": ("all", "repair: got 'all'; allowed: none, bn, repair"),
    "backend": ("gpu", "backend: got 'gpu'; allowed: auto"),
    "alpha": (0, "alpha: got 0; allowed: finite and above 0"),
    "beta": (-0.1, "beta: got -0.1; allowed: finite and at least 0"),
    "refit": ("yes", "refit: got 'yes'; allowed: True or False"),
    "seed": (0.5, "seed: got 0.5; allowed: an integer"),
}


@pytest.mark.parametrize("name", OPTIONS)
def test_option_out_of_range(name: str, refused) -> None:
    value, message = OPTIONS[name]
    assert refused(**{name: value}).startswith(f"InputError: {message}")


@pytest.mark.parametrize("value", ["half", True, float("nan"), float("inf"), None])
def test_alpha_is_a_positive_number(value: object, refused) -> None:
    assert refused(alpha=value).startswith("InputError: alpha: got")


@pytest.mark.parametrize("value", [0, -1, "big", True, float("nan"), float("inf"), [2]])
def test_width_is_a_choice_or_a_factor(value: object, refused) -> None:
    message = refused(width=value)
    assert message.startswith(f"InputError: width: got {value!r}")
    assert "allowed: 'max', 'union', a positive factor of the widest parent" in message


@pytest.mark.parametrize("value", [0, "big", -3])
def test_width_of_one_space(value: object, refused) -> None:
    assert refused(width={"stem.0": value}).startswith(
        f"InputError: width: got {value!r} for space 'stem.0'; allowed: 'max', 'union', a positive"
    )


def test_width_of_an_unknown_space(refused) -> None:
    message = refused(width={"stem.9": 4})
    assert message.startswith("InputError: width: no space 'stem.9'; spaces are ")
    assert "stem.0" in message


def test_unknown_option_names_the_nearest(refused) -> None:
    message = refused(mach="zip")
    assert message.startswith("InputError: unknown option 'mach'; did you mean 'match'? (options: ")


WEIGHTS = {
    "weights: got 1 values for 2 models": [1.0],
    "weights: got [1.0, -0.5]; allowed: finite, at least 0, not all 0": [1, -0.5],
    "weights: got [0.0, 0.0]; allowed: finite, at least 0, not all 0": [0, 0],
    "weights: got [nan, 1.0]; allowed: finite, at least 0, not all 0": [float("nan"), 1],
    "weights: got 'ab'; allowed: one number per model": "ab",
    "weights: got ['a', 1]; allowed: one number per model": ["a", 1],
    "weights: got 3; allowed: one number per model": 3,
}


@pytest.mark.parametrize("message", WEIGHTS)
def test_weights(message: str, refused) -> None:
    assert refused(weights=WEIGHTS[message]) == f"InputError: {message}"


def test_permute_cannot_shrink(refused) -> None:
    message = refused(match="permute", width=0.5)
    assert message.startswith("InputError: width: 6 for space 'stem.0' is below its widest parent")


def test_no_batches(refused) -> None:
    wanted = "InputError: batches: got none; calibration needs at least one batch of inputs"
    assert refused(batches=[]) == wanted
    assert refused(batches=iter(())) == wanted


def test_tensor_instead_of_batches(refused) -> None:
    assert refused(batches=torch.zeros(8, 3, 8, 8)) == (
        "InputError: batches: got one tensor; allowed: an iterable of batches, "
        "such as tensor.split(250)"
    )


@pytest.mark.parametrize("value", [None, 3])
def test_batches_that_are_no_iterable(value: object, refused) -> None:
    assert refused(batches=value).startswith(f"InputError: batches: got {type(value).__name__}; ")


def test_batch_of_another_type(refused) -> None:
    assert refused(batches=["text"]).startswith("InputError: batches: got an item of type str; ")


BATCHES = {
    "channels": torch.zeros(8, 5, 8, 8, dtype=torch.float64),
    "dimensions": torch.zeros(8, 3, dtype=torch.float64),
    "dtype": torch.zeros(8, 3, 8, 8),
    "integers": torch.zeros(8, 3, 8, 8, dtype=torch.int64),
    "keywords": {"image": torch.zeros(8, 3, 8, 8, dtype=torch.float64)},
    "too many": (torch.zeros(8, 3, 8, 8, dtype=torch.float64),) * 2,
}


@pytest.mark.parametrize("case", BATCHES)
@pytest.mark.parametrize("place", [0, 1])
def test_batch_that_the_model_cannot_take(case: str, place: int, refused, images) -> None:
    batches = [*images[:place], BATCHES[case]]
    reason = ["ResNet cannot take inputs ", "one does not fit: ResNet cannot be exported"]
    assert refused(batches=batches).startswith(f"InputError: batches: {reason[place]}")


@pytest.mark.parametrize("count", [1, 3])
def test_batches_with_too_few_samples(count: int, refused, images) -> None:
    message = refused(batches=[images[0], images[1][:count]])
    assert message == (
        f"InputError: batches: batch 1 has {count} samples; allowed: 4 or more in every batch"
    )


def test_empty_batch(refused, images) -> None:
    message = refused(batches=[images[0], images[1][:0]])
    assert message.startswith("InputError: batches: batch 1 has 0 samples")


def test_models_that_are_none(refused, make) -> None:
    assert refused(models=make(vgg, [8])).startswith("InputError: models: got one module; ")
    assert refused(models=[]).startswith("InputError: models: got none; allowed: a list of ")
    assert refused(models=[make(vgg, [8]), "vgg"]) == (
        "InputError: models[1]: got str; allowed: a torch module, or what open_checkpoint returns"
    )
    assert refused(models=3).startswith("InputError: models: got int; allowed: a list of ")


def test_one_model_is_returned(make, images) -> None:
    parent = make(ResNet, [2, 1], 8)
    result = hm.merge([parent], images, progress=False, match="zip")
    with torch.no_grad():
        assert torch.allclose(result.model(images[0]), parent(images[0]), rtol=1e-8)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite(value: float, refused, make) -> None:
    parents = [make(ResNet, [2, 1], 8), make(ResNet, [1, 1], 12, seed=1)]
    with torch.no_grad():
        parents[1].layers[0][0].conv1.weight[0, 0, 0, 0] = value
    assert refused(models=parents) == (
        "InputError: models[1]: tensor 'layers.0.0.conv1.weight' holds NaN or infinity; "
        "weights must be finite"
    )


def test_activations_that_overflow(refused, make, vectors) -> None:
    parents = [make(perceptron, [8, 8], dtype=torch.float32, seed=s) for s in range(2)]
    with torch.no_grad():
        for parent in parents:
            parent[2].weight.mul_(1e38)
            parent[0].weight.mul_(1e20)
    message = refused(models=parents, batches=[x.float() for x in vectors])
    assert message.startswith("InputError: activations of ")
    assert "NaN or infin" in message


def test_inputs_that_are_not_finite(refused, images) -> None:
    bad = images[0].clone()
    bad[0, 0, 0, 0] = float("nan")
    assert "NaN or infin" in refused(batches=[bad])
