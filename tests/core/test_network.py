"""Canonical networks and their execution node by node."""

from __future__ import annotations

import copy

import pytest
import torch
from planted_nets import PAIRS, images
from torch import nn

from hetmerge.batches import as_call
from hetmerge.errors import InputError
from hetmerge.execution import flat_inputs
from hetmerge.layers import find_groups
from hetmerge.network import Network
from hetmerge.tracing import export
from hetmerge.tracing.exporting import place_on


@pytest.mark.parametrize("name", list(PAIRS))
def test_canonical_form_computes_the_same(name: str) -> None:
    model = PAIRS[name]()[0]
    before = copy.deepcopy(model.state_dict())
    x = images(1)[0]
    network = Network(model, ((x,), {}))
    with torch.no_grad():
        torch.testing.assert_close(network.model(x), model(x), rtol=1e-10, atol=1e-10)
    for path, norm in network.model.named_modules():
        if isinstance(norm, nn.BatchNorm2d):
            assert norm.running_mean is not None
            assert not norm.running_mean.any(), path
            assert torch.equal(norm.weight, torch.ones_like(norm.weight)), path
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())


@pytest.mark.parametrize("name", list(PAIRS))
def test_walker_agrees_with_the_model_and_frees_what_is_read(name: str) -> None:
    model = PAIRS[name]()[0]
    batches = [*images(2), images(1, count=7)[0]]  # another batch size exports another program
    calls = [as_call(x) for x in batches]
    network = Network(model, calls[0])
    walker = network.walk(calls)
    (output,) = network.graph.outputs
    found = walker.value(output)
    with torch.no_grad():
        for x, y in zip(batches, found, strict=True):
            torch.testing.assert_close(y, network.model(x))
    assert set(walker.values) == {output}


def test_walker_recomputes_what_was_forgotten() -> None:
    model = PAIRS["vgg"]()[0]
    network = Network(model, as_call(images(1)[0]))
    walker = network.walk([as_call(images(1)[0])])
    first = network.layers[0]
    walker.hold([first.source, first.tail])
    old = walker.value(first.tail)[0]
    network.state[first.weight].mul_(2)
    walker.forget(first.node)
    new = walker.value(first.tail)[0]
    assert not torch.allclose(old, new)
    assert bool(torch.isfinite(walker.value(network.graph.outputs[0])[0]).all())


def test_residual_layers_are_grouped_with_their_shortcut() -> None:
    network = Network(PAIRS["resnet-conv"]()[0], as_call(images(1)[0]))
    groups = find_groups(network.graph.program, network.layers)
    weights = [tuple(layer.weight for layer in group.layers) for group in groups]
    assert ("stages.1.0.conv2.weight", "stages.1.0.shortcut.0.weight") in weights
    alone = groups[weights.index(("stages.0.0.conv2.weight",))]
    assert alone.skip is not None
    assert [w for w in weights if "stem.weight" in w] == [("stem.weight",)]


def test_shortcuts_become_convolutions() -> None:
    network = Network(PAIRS["resnet-pad"]()[0], as_call(images(1)[0]))
    assert network.replaced == ("stages.1.0.shortcut",)
    stream = [s for s in network.graph.spaces if s.free and s.size == 16]
    assert stream, "the stage's stream is one space of its own width"


def test_weights_must_be_finite() -> None:
    model = PAIRS["vgg"]()[0]
    model[4].weight.data[1, 2] = float("nan")
    with pytest.raises(InputError, match=r"tensor '4\.weight' holds NaN"):
        Network(model, as_call(images(1)[0]))


def test_batches_are_calls() -> None:
    x = torch.zeros(2, 3)
    assert as_call(x) == ((x,), {})
    assert as_call([x, 1]) == ((x, 1), {})
    assert as_call({"a": x}) == ((), {"a": x})
    assert flat_inputs((x,), {"b": 1})[1] == 1
    with pytest.raises(InputError, match="got an item of type str"):
        as_call("x")


def test_walker_runs_a_unit_again_only_while_it_is_held() -> None:
    network = Network(PAIRS["resnet-conv"]()[0], as_call(images(1)[0]))
    calls = [as_call(images(1)[0])]
    end = network.graph.outputs[0]
    unit = frozenset(network.nodes.inside(["stages.0.1"]))
    hidden, later = (
        next(x for x in network.layers if x.weight == f"stages.0.{i}.conv2.weight") for i in (1, 2)
    )
    walker = network.walk(calls, [unit])
    walker.hold([hidden.source, hidden.tail])
    first = [walker.value(name)[0] for name in (hidden.source, hidden.tail)]
    wanted = walker.value(end)[0]
    assert hidden.source not in walker.values
    assert later.source not in walker.values
    ran: list[str] = []
    make = walker.make
    walker.make = lambda name: ran.append(name) or make(name)  # type: ignore[method-assign]
    second = [walker.value(name)[0] for name in (hidden.source, hidden.tail)]
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert set(ran) < unit
    assert len(ran) == len(set(ran))  # once more, not once more for every value
    with pytest.raises(RuntimeError, match="was freed before it was asked for"):
        walker.value(later.source)
    walker.release([hidden.source])
    assert torch.equal(walker.value(hidden.tail)[0], first[1])
    walker.release([hidden.tail])
    assert set(walker.values) == {end}
    assert torch.equal(walker.value(end)[0], wanted)
    with pytest.raises(RuntimeError, match="was freed before it was asked for"):
        walker.value(hidden.source)


class Own(nn.Module):
    """Numbers and positions that stand in the code of the model alone."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 4)

    def forward(self, x):
        return self.layer(x)[:, [2, 0]] * torch.tensor(0.5)


def test_numbers_in_a_models_code_are_known_without_its_weights() -> None:
    program = export(Own().to("meta"), torch.zeros(2, 3))
    place_on(program, torch.device("cpu"))
    found = sorted(program.constants.values(), key=lambda constant: constant.dim())
    assert [constant.tolist() for constant in found] == [0.5, [2, 0]]
