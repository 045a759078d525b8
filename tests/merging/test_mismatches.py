"""Parents that do not belong together, outputs and labels that do not fit."""

import pytest
import torch
from families.plain import NormPerceptron, perceptron
from families.vision import Mobile, PreActivation, ResNet, vgg

import hetmerge as hm


def refused(models, batches, **options) -> str:
    with pytest.raises(hm.HetmergeError) as caught:
        hm.merge(models, batches, progress=False, **options)
    assert "\n" not in str(caught.value)
    return f"{type(caught.value).__name__}: {caught.value}"


def test_outputs_of_different_size(make, images) -> None:
    parents = [make(ResNet, [2, 1], 8, 5), make(ResNet, [1, 1], 12, 7, seed=1)]
    assert refused(parents, images) == (
        "PlanError: outputs: the models' outputs differ in size (models[0]: 5, models[1]: 7); "
        "average needs outputs that mean the same: use outputs='concat', or labels= with the name "
        "of every output"
    )


def test_outputs_side_by_side(make, images) -> None:
    parents = [make(ResNet, [2, 1], 8, 5), make(ResNet, [1, 1], 12, 7, seed=1)]
    options = {"match": "zip", "outputs": "concat", "width": "union", "progress": False}
    model = hm.merge(parents, images, **options).model
    with torch.no_grad():
        wanted = torch.cat([m(images[0]) for m in parents], 1)
        assert torch.allclose(model(images[0]), wanted, rtol=1e-10, atol=1e-12)


def test_shared_labels_are_averaged_and_others_kept(make, images) -> None:
    parents = [make(ResNet, [2, 1], 8, 3), make(ResNet, [1, 1], 12, 4, seed=1)]
    labels = [["cat", "dog", "cow"], ["hen", "cow", "cat", "pig"]]
    result = hm.merge(parents, images, labels=labels, width="union", progress=False, match="zip")
    with torch.no_grad():
        a, b = (m(images[0]) for m in parents)
        found = result.model(images[0])
    cat, dog, cow = (a[:, 0] + b[:, 2]) / 2, a[:, 1], (a[:, 2] + b[:, 1]) / 2
    wanted = torch.stack([cat, dog, cow, b[:, 0], b[:, 3]], 1)
    assert torch.allclose(found, wanted, rtol=1e-10, atol=1e-12)


LABELS = {
    "labels: models[0] has 5 outputs in 'head', got 4 names": [list("abcd"), list("abcde")],
    "labels: models[1] names 'a' twice; names must be unique": [list("abcde"), list("abcda")],
    "labels: got 1 lists for 2 models": [list("abcde")],
    "labels: got 'abcde'; allowed: per model, a list with the name of every output": "abcde",
    "labels: got 5; allowed: per model, a list with the name of every output": 5,
    "labels: got ['abcde', 'abcde']; allowed: per model, a list with the name of every output": [
        "abcde",
        "abcde",
    ],
}


@pytest.mark.parametrize("message", LABELS)
def test_labels(message: str, make, images) -> None:
    parents = [make(ResNet, [2, 1], 8, 5), make(ResNet, [1, 1], 12, 5, seed=1)]
    assert refused(parents, images, labels=LABELS[message]) == f"InputError: {message}"


@pytest.mark.parametrize("other", [Mobile, PreActivation])
def test_two_families(other, make, images) -> None:
    message = refused([make(ResNet, [2, 1], 8), make(other, 2, 8)], images)
    assert message.startswith("AlignmentError: ")


def test_two_families_without_stages(make, vectors) -> None:
    message = refused([make(NormPerceptron, 2, 8), make(perceptron, [8, 8])], vectors)
    assert message.startswith("AlignmentError: ")


def test_different_number_of_stages(make, images) -> None:
    parents = [make(vgg, [8, 8, 16, 16]), make(vgg, [8, 8, 8, 16, 16], seed=1)]
    assert refused(parents, images) == (
        "AlignmentError: the parents have 3 and 4 stages; allowed: the same number "
        "(name them with blocks=)"
    )


BLOCKS = {
    "AlignmentError: blocks: got 1 lists for 2 models": [[["layers.0.0"]]],
    "AlignmentError: blocks: stage 0 names module 'layers.9', which runs nothing": [
        [["layers.9"]],
        [["layers.0.0"]],
    ],
    "AlignmentError: the parents have 1 and 2 stages": [
        [["layers.0.0"]],
        [["layers.0.0"], ["layers.1.0"]],
    ],
}


@pytest.mark.parametrize("message", BLOCKS)
def test_blocks_by_hand(message: str, make, images) -> None:
    parents = [make(ResNet, [2, 1], 8), make(ResNet, [1, 1], 12, seed=1)]
    assert refused(parents, images, blocks=BLOCKS[message]).startswith(message)


def test_stage_that_cannot_be_aligned(make, images) -> None:
    """Blocks named so that a strided one would have to be passed by."""
    parents = [make(ResNet, [1, 1], 8), make(ResNet, [1, 1], 8, seed=1)]
    blocks = [[["layers.0.0", "layers.1.0"]], [["layers.0.0"]]]
    message = refused(parents, images, blocks=blocks)
    assert message.startswith(("AlignmentError: ", "PlanError: "))
