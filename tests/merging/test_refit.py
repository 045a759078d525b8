"""Refit against NumPy least squares on materialised inputs, and what it says about itself."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from families.plain import Tied, perceptron
from families.vision import Mobile, ResNet, vgg
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import hetmerge as hm
from hetmerge.batches import as_call
from hetmerge.execution import Walker
from hetmerge.layers import Layer, find_groups
from hetmerge.leastsquares import RIDGES
from hetmerge.network import Network
from hetmerge.refit import HEAD_SHARE

RIDGE = 1e-2
NEAR = 1e-7  # float64 normal equations of condition below 1e6, against QR of the same rows


class Crossing(nn.Module):
    """A depthwise and a dense convolution meet in one sum: one of the two is grouped."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, 2, 1)
        self.depthwise = nn.Conv2d(width, width, 3, padding=1, groups=width)
        self.dense = nn.Conv2d(width, width, 1)
        self.head = nn.Linear(width, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.stem(x))
        return self.head(torch.relu(self.depthwise(y) + self.dense(y)).mean((2, 3)))


CASES = {
    "plain": (vgg, ([8, 8, 8, 8],), "images"),
    "linear": (perceptron, ([8, 8, 8],), "vectors"),
    "residual with shortcuts": (ResNet, ([2, 1], 4), "images"),
    "grouped and depthwise": (Mobile, (1, 8), "images"),
    "depthwise beside dense": (Crossing, (6,), "images"),
}


def columns(layer: Layer, x: Tensor, weight: Tensor, group: int) -> np.ndarray:
    """[rows, p]: what one group of a layer reads, by image and position."""
    if not layer.spatial:
        return x.reshape(-1, x.shape[-1]).numpy()
    x = x.chunk(layer.groups, 1)[group]
    geometry = layer.dilation, layer.padding, layer.stride
    unfolded = F.unfold(x, weight.shape[2:], *geometry)
    return unfolded.transpose(1, 2).flatten(0, 1).numpy()


def rows(value: Tensor, layer: Layer) -> np.ndarray:
    value = value.movedim(layer.feature_dim, -1)
    return value.reshape(-1, value.shape[-1]).numpy()


def ridge(x: np.ndarray, t: np.ndarray, prior: np.ndarray, strength: float) -> np.ndarray:
    """Predictions of min |x w + b - t|^2 / n + strength * d * |w - prior|^2, by least squares."""
    n, p = x.shape
    root = np.sqrt(strength * np.mean(x**2) * n)
    left = np.block([[x, np.ones((n, 1))], [root * np.eye(p), np.zeros((p, 1))]])
    right = np.concatenate([t, root * prior])
    return left[:n] @ np.linalg.lstsq(left, right, rcond=None)[0]


def whole(walker: Walker, names: set[str]) -> dict[str, Tensor]:
    walker.hold(names)
    return {name: torch.cat(walker.value(name)) for name in names}


@pytest.mark.parametrize("case", CASES)
def test_every_layer_reaches_the_least_squares_optimum(case: str, make, request) -> None:
    """In front of each layer stand the merged network's own final activations."""
    family, arguments, inputs = CASES[case]
    batches = request.getfixturevalue(inputs)
    parents = [make(family, *arguments, seed=i) for i in range(2)]
    plan = hm.plan(parents, batches, match="identity", progress=False)
    start = hm.apply(plan, parents, batches, refit=False, progress=False)
    result = hm.apply(plan, parents, batches, ridge=RIDGE, progress=False)
    calls = [as_call(x) for x in batches]
    merged = Network(result.model, calls[0], fold=False)
    priors = dict(start.model.named_parameters())
    groups = find_groups(merged.graph.program, merged.layers)
    assert sum(len(fit["layers"]) for fit in result.report.fits) == len(merged.layers)
    assert result.report.left_out == {}
    needed = {g.target for g in groups}
    theirs = [whole(Network(parent, calls[0]).walk(calls), needed) for parent in parents]
    needed |= {layer.source for g in groups for layer in g.layers}
    mine = whole(merged.walk(calls), needed | {g.skip for g in groups if g.skip})
    for group in groups:
        lead = group.layers[0]
        skip = rows(mine[group.skip], lead) if group.skip else 0.0
        target = sum(rows(values[group.target], lead) for values in theirs) / 2 - skip
        found = rows(mine[group.target], lead) - skip
        strength = RIDGE * (HEAD_SHARE if group is groups[-1] else 1)
        for o in range(target.shape[1]):
            x, prior = [], []
            for layer in group.layers:
                weight = priors[layer.weight].detach()
                share = o * layer.groups // target.shape[1]
                x.append(columns(layer, mine[layer.source], weight, share))
                prior.append(weight[o].flatten().numpy())
            wanted = ridge(np.hstack(x), target[:, o], np.hstack(prior), strength)
            error = np.abs(found[:, o] - wanted).max() / np.abs(wanted).max()
            assert error < NEAR, (group.layers[0].weight, o)


# names per parent; per merged output, the (parent, output) that it averages; standardised?
LABELS = {
    "same set, other order": (
        [["a", "b", "c"], ["c", "a", "b"]],
        [[(0, 0), (1, 1)], [(0, 1), (1, 2)], [(0, 2), (1, 0)]],
        False,
    ),
    "partly shared": (
        [["a", "b", "c"], ["c", "d", "e"]],
        [[(0, 0)], [(0, 1)], [(0, 2), (1, 0)], [(1, 1)], [(1, 2)]],
        True,
    ),
}


@pytest.mark.parametrize("case", LABELS)
def test_head_targets_of_mixed_label_sets(case: str, make, vectors) -> None:
    labels, members, scaled = LABELS[case]
    parents = [make(perceptron, [8, 8], 3, seed=i) for i in range(2)]
    plan = hm.plan(parents, vectors, labels=labels, match="identity", progress=False)
    start = hm.apply(plan, parents, vectors, refit=False, progress=False).model
    model = hm.apply(plan, parents, vectors, ridge=RIDGE, progress=False).model
    x = torch.cat(vectors)
    with torch.no_grad():
        outputs = [parent(x) for parent in parents]
        if scaled:
            outputs = [(y - y.mean()) / y.std() for y in outputs]
        features, found = model[:-1](x).numpy(), model(x).numpy()
    for o, places in enumerate(members):
        target = sum(outputs[m][:, k] for m, k in places).numpy() / len(places)
        prior = start[-1].weight[o].detach().numpy()
        wanted = ridge(features, target, prior, RIDGE * HEAD_SHARE)
        assert np.abs(found[:, o] - wanted).max() / np.abs(wanted).max() < NEAR, o


def test_layers_that_are_not_refitted_say_why(make, tokens) -> None:
    parents = [make(Tied, 3, 8), make(Tied, 2, 12, seed=1)]
    report = hm.merge(parents, tokens, progress=False, match="zip").report
    assert report.left_out == {"read": "read in 2 places (embedding, linear)"}
    fitted = {layer for fit in report.fits for layer in fit["layers"]}
    blocks = {f"blocks.{i}.{k}" for i in range(3) for k in (0, 2)}
    assert fitted == blocks


def test_auto_takes_the_ridge_that_errs_least_on_left_out_batches(make, images) -> None:
    parents = [make(vgg, [8, 8]), make(vgg, [8, 8], seed=1)]
    plan = hm.plan(parents, images, ridge="auto", progress=False, match="zip")
    found = hm.apply(plan, parents, images, progress=False).report
    assert not found.notes
    assert all(fit["ridge"] in (1e-4, 1e-3, 1e-2, 1e-1) for fit in found.fits)
    assert len({fit["ridge"] for fit in found.fits}) > 1
    single = hm.apply(plan, parents, [torch.cat(images)], progress=False).report
    assert any("'auto' needs two or more batches" in note for note in single.notes)
    assert {fit["ridge"] for fit in single.fits} == {RIDGE, RIDGE * HEAD_SHARE}


def test_too_few_inputs_are_named_with_the_number_that_would_do(make, images) -> None:
    parents = [make(vgg, [8, 8]), make(vgg, [8, 8], seed=1)]
    plan = hm.plan(parents, images, progress=False, match="zip")
    few = [images[0][:5]]
    wanted = "batches: 5 calibration inputs are few for refit, about 18 would do: "
    (note,) = hm.apply(plan, parents, few, progress=False).report.notes
    assert note.startswith(wanted)  # the head: 8 features and a bias, twice as many rows
    assert plan.cost(parents, few).notes == [note]
    assert plan.cost(parents, images).notes == []
    with pytest.raises(hm.InputError, match="batches: got 3 samples in all; allowed: 4 or more"):
        hm.apply(plan, parents, [images[0][:3]], progress=False)


@pytest.mark.parametrize(
    ("family", "shapes", "missing"),
    [
        (ResNet, [([2, 1], 4), ([2, 1], 4)], "zero"),
        (ResNet, [([4, 1], 4), ([2, 1], 6)], "zero"),
        (ResNet, [([4, 1], 4), ([2, 1], 6)], "repeat"),
        (Mobile, [(1, 8), (1, 8)], "zero"),
    ],
)
def test_cost_counts_the_activations_that_are_kept(
    family, shapes, missing: str, make, images, monkeypatch
) -> None:
    batches, options = (
        images,
        {"match": "zip", "missing": missing, "depth": "tail", "progress": False},
    )
    parents = [make(family, *arguments, seed=i) for i, arguments in enumerate(shapes)]
    plan = hm.plan(parents, batches, **options)
    assert ([0, 0, 0, 1] in plan.slots[1]) == (missing == "repeat")
    walkers: set[Walker] = set()
    most = [0]
    make_value = Walker.make

    def watched(self: Walker, name: str) -> list[Tensor]:
        walkers.add(self)
        found = make_value(self, name)
        most[0] = max(most[0], kept([found, *(v for w in walkers for v in w.values.values())]))
        return found

    monkeypatch.setattr(Walker, "make", watched)
    report = hm.apply(plan, parents, batches, progress=False).report
    cost = plan.cost(parents, batches)
    assert cost.stream_bytes == most[0]
    assert [(s.layers, s.rows, s.inputs) for s in cost.systems] == [
        (fit["layers"], fit["rows"], fit["inputs"]) for fit in report.fits
    ]
    assert cost.peak_bytes > cost.stream_bytes > 0


@pytest.mark.parametrize("ridge", [RIDGE, "auto"])
def test_cost_counts_operations_and_what_solving_needs(ridge, make, vectors) -> None:
    """Three linear layers; 256 units, so that the normal equations outweigh the activations."""
    parents = [make(perceptron, [256, 256], seed=i) for i in range(2)]
    plan = hm.plan(parents, vectors, ridge=ridge, progress=False, match="zip")
    merged = hm.apply(plan, parents, vectors, progress=False).model
    cost = plan.cost(parents, vectors)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        for model in (*parents, merged):
            for batch in vectors:
                model(batch)
    solved = 0.0
    solutions = 1 if ridge == RIDGE else 1 + len(vectors) * len(RIDGES)
    for system, outputs in zip(cost.systems, (256, 256, 5), strict=True):
        n, p = system.rows, system.inputs
        solved += n * p * p + 2 * n * p * outputs
        solved += solutions * (p**3 / 3 + 4 * p * p * outputs)
    assert cost.flops == pytest.approx(counter.get_total_flops() + solved, abs=1)
    square = 8 * 257**2  # a system of equations, and the copies that are made to solve it
    folds = 1 if ridge == RIDGE else len(vectors)
    weights = sum(t.numel() * 8 for m in (*parents, merged, merged) for t in m.parameters())
    assert cost.peak_bytes >= (folds + 4) * square + weights


@pytest.mark.parametrize("case", ["plain", "linear", "grouped and depthwise"])
def test_rows_follow_from_the_inputs_of_a_system(case: str, make, request, monkeypatch) -> None:
    monkeypatch.setattr("hetmerge.systems.LEAST_ROWS", 96)
    monkeypatch.setattr("hetmerge.systems.ROWS_PER_INPUT", 3)
    family, arguments, inputs = CASES[case]
    batches = request.getfixturevalue(inputs)
    parents = [make(family, *arguments, seed=i) for i in range(2)]
    plan = hm.plan(parents, batches, progress=False, match="zip")
    fits = hm.apply(plan, parents, batches, progress=False).report.fits
    found = [(fit["inputs"], fit["rows"]) for fit in fits]
    assert found == [(s.inputs, s.rows) for s in plan.cost(parents, batches).systems]
    samples = sum(len(batch) for batch in batches)
    for count, rows in found:
        wanted = max(96, 3 * count)
        assert wanted - samples < rows <= wanted or rows == samples
    assert len({rows for _, rows in found}) > 1 or case == "linear"


def kept(values: list[list[Tensor]]) -> int:
    """Bytes of values, each storage once."""
    storages = [x.untyped_storage() for value in values for x in value]
    return sum({s.data_ptr(): s.nbytes() for s in storages}.values())
