"""Networks that run some units twice, merged with the network that has them once."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from disguise import disguised
from llama_nets import llama, tokens
from planted_nets import ResNet, images, randomised, vgg
from torch import Tensor, nn

import hetmerge as hm

sys.path.insert(0, str(Path(__file__).parents[1] / "merging"))

EXACT = 1e-8
SOFT = 0.3  # of what units change: their second run sees about what the first one saw


def bert() -> nn.Module:
    pytest.importorskip("transformers")
    from families import pretrained as hf

    model = hf.lively(hf.bert(3, 16, 2), 3).double()
    for norm in model.bert.encoder.layer.modules():
        if isinstance(norm, nn.LayerNorm):
            norm.weight.data.sub_(1).mul_(SOFT).add_(1)
            norm.bias.data.mul_(SOFT)
    return softened(model, "attention.output.dense", ".output.dense")


def softened(model: nn.Module, *ends: str) -> nn.Module:
    for name, parameter in model.named_parameters():
        if any(end in name for end in ends):
            parameter.data.mul_(SOFT)
    return model


def logits(output: object) -> Tensor:
    return output if isinstance(output, Tensor) else output.logits  # type: ignore[attr-defined]


@dataclass(frozen=True)
class Family:
    """A network of three interchangeable units in the container `path`, and what it reads."""

    make: Callable[[], nn.Module]
    path: str
    batches: list[dict[str, Tensor]]


FAMILIES = {
    "post-norm": Family(
        bert, "bert.encoder.layer", [{"input_ids": ids[:, :8] % 31} for ids in tokens()]
    ),
    "pre-norm": Family(
        lambda: softened(llama(3, 3, 12), "o_proj", "down"),
        "layers",
        [{"ids": ids} for ids in tokens()],
    ),
    "residual": Family(
        lambda: softened(randomised(ResNet([3, 1], [8, 16]), 1), "0.0.bn2", "0.1.bn2", "0.2.bn2"),
        "stages.0",
        [{"x": x} for x in images()],
    ),
}
# Units of the deeper network, and how units are placed so that they meet their like.
ORDERS = {"head": [0, 1, 2, 2], "tail": [0, 0, 0, 1, 2], "uniform": [0, 0, 1, 1, 2, 2]}


def deepened(model: nn.Module, path: str, order: Sequence[int]) -> nn.Module:
    """The same units in this order; what stands in it twice runs twice."""
    other = copy.deepcopy(model)
    units = [copy.deepcopy(model.get_submodule(path)[k]) for k in order]
    container = other.get_submodule(path)
    container._modules = {str(i): unit for i, unit in enumerate(units)}
    if hasattr(other, "config"):
        other.config.num_hidden_layers = len(order)
    return other


def gap(found: nn.Module, wanted: nn.Module, batches: Sequence) -> float:
    """Largest difference of outputs on the first batch, of the largest output."""
    with torch.no_grad():
        a, b = (logits(m(**batches[0])) for m in (found, wanted))
    return float((a - b).abs().max() / b.abs().max())


@pytest.mark.parametrize("depth", ORDERS)
@pytest.mark.parametrize("family", FAMILIES)
def test_units_that_run_twice(family: str, depth: str) -> None:
    """Where the shallow network repeats its units, the average is the deep network."""
    chosen, order = FAMILIES[family], ORDERS[depth]
    batches, shallow = chosen.batches, chosen.make()
    deep = deepened(shallow, chosen.path, order)
    assert gap(shallow, deep, batches) > 0.02
    parents = [disguised(shallow, batches[0]), deep]
    options = {"match": "permute", "depth": depth, "refit": False, "progress": False}
    found = hm.merge(parents, batches, missing="repeat", **options)
    name = next(n for n, rows in found.plan.segments.items() if len(rows) == 3)
    stage = found.plan.stages.index(name)
    assert found.plan.slots[0][stage] == order
    assert found.plan.segments[name] == [order.index(k) for k in range(3)]
    assert gap(found.model, deep, batches) < EXACT
    if depth == "head":  # the choice is what makes it exact
        assert gap(hm.merge(parents, batches, **options).model, deep, batches) > 1e-3


def test_parents_that_lack_different_units() -> None:
    """Of a unit that runs twice, each of two parents repeats the one that it has once."""
    chosen = FAMILIES["post-norm"]
    model, batches = chosen.make(), chosen.batches
    deep = deepened(model, chosen.path, [0, 0, 1, 1])
    first, second = (deepened(model, chosen.path, order) for order in ([0, 1, 1], [0, 0, 1]))
    options = {"match": "permute", "missing": "repeat", "weights": [1, 3, 2], "progress": False}
    found = hm.merge([first, deep, disguised(second, batches[0])], batches, refit=False, **options)
    assert [slots[0] for slots in found.plan.slots] == [[0, 0, 1, 2], [0, 1, 2, 3], [0, 1, 2, 2]]
    assert gap(found.model, deep, batches) < EXACT
    silent = hm.merge([first, deep], batches, match="zip", weights=[0, 1], missing="repeat")
    assert gap(silent.model, deep, batches) < EXACT


def test_a_plan_holds_its_repetitions(tmp_path: Path) -> None:
    chosen = FAMILIES["post-norm"]
    model, batches = chosen.make(), chosen.batches
    parents = [model, deepened(model, chosen.path, ORDERS["tail"])]
    result = hm.merge(parents, batches, missing="repeat", depth="tail", progress=False, match="zip")
    assert not result.report.exact
    assert "3 + 5 units -> 5, placed at [0, 3, 4]" in result.plan.summary()
    result.plan.save(tmp_path)
    again = hm.apply(hm.AlignmentPlan.load(tmp_path), parents, batches, progress=False)
    assert gap(again.model, result.model, batches) == 0


def test_units_that_cannot_follow_themselves_are_passed() -> None:
    """A strided block, and layers whose input and output are ordered apart."""
    for name, shallow, deep in (
        ("x", ResNet([1, 1], [8, 16]), ResNet([1, 3], [8, 16])),
        ("input", vgg([1, 2], [10, 8]), vgg([3, 2], [8, 10])),
    ):
        batches = [{name: x} for x in images()]
        parents = [randomised(shallow, 1), randomised(deep, 2)]
        found, zero = (
            hm.merge(parents, batches, missing=missing, progress=False, refit=False, match="zip")
            for missing in ("repeat", "zero")
        )
        assert found.plan.slots == zero.plan.slots
        assert gap(found.model, zero.model, batches) == 0
        assert any("passes it as with 'zero'" in note for note in found.report.notes)
        assert not any("missing='repeat'" in note for note in zero.report.notes)


def test_a_union_with_repetitions_is_no_ensemble() -> None:
    chosen = FAMILIES["residual"]
    model = chosen.make()
    parents = [model, deepened(model, chosen.path, ORDERS["head"])]
    assert hm.merge(parents, chosen.batches, width="union", match="zip").report.exact
    plan = hm.plan(parents, chosen.batches, width="union", missing="repeat", match="zip")
    with pytest.raises(hm.InputError, match="refit or repair needs calibration inputs"):
        hm.apply(plan, parents)


def test_the_choice_is_checked_and_named() -> None:
    chosen = FAMILIES["post-norm"]
    with pytest.raises(hm.InputError, match="missing: got 'twice'; allowed: zero, repeat"):
        hm.merge([chosen.make()], chosen.batches, missing="twice", match="zip")
    parents = [chosen.make(), deepened(chosen.make(), chosen.path, ORDERS["tail"])]
    notes = hm.plan(parents, chosen.batches, progress=False, match="zip").notes
    assert any(note.endswith("missing='repeat' repeats its unit before instead") for note in notes)
    assert not hm.plan(parents, chosen.batches, missing="repeat", progress=False, match="zip").notes
