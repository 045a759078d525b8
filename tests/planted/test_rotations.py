"""Orthogonal maps with a known exact answer: 1e-8 in float64."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from llama_nets import VOCABULARY, Llama, llama, rotated, tokens
from torch import Tensor, nn

import hetmerge as hm
from hetmerge.layers import find_groups
from hetmerge.planning import plan_statistics
from hetmerge.projection import Projector
from hetmerge.targets import Targets

EXACT = 1e-8


def outputs(model: nn.Module) -> Tensor:
    """On tokens in an order that calibration has not seen."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        return model(torch.randint(VOCABULARY, (8, 10), generator=generator))


def gap(merged: nn.Module, wanted: Tensor) -> float:
    return float((outputs(merged) - wanted).abs().max() / wanted.abs().max())


CASES = {
    "plain": lambda: llama(1, 2, 12),
    "scale minus one": lambda: llama(2, 2, 12, offset=1.0),
    "groups": lambda: llama(3, 2, 12, heads=4, groups=2),
}


@pytest.mark.parametrize(
    ("name", "width", "refit"),
    [
        ("plain", 12, False),
        ("plain", 17, True),
        ("scale minus one", 17, False),
        ("groups", 12, True),
        ("groups", 17, False),
    ],
)
def test_a_turned_stream_is_found(name: str, width: int, refit: bool) -> None:
    model = CASES[name]()
    other = rotated(model, width)
    assert gap(other, outputs(model)) < EXACT
    merged = hm.merge([model, other], tokens(), match="pca", refit=refit, progress=False)
    assert gap(merged.model, outputs(model)) < EXACT


@pytest.mark.parametrize(("weights", "refit"), [([1, 0], True), ([0, 1], False)])
def test_weight_one_returns_that_parent(weights: list[float], refit: bool) -> None:
    parents = [llama(1, 3, 12, heads=4), llama(2, 2, 16)]
    merged = hm.merge(parents, tokens(), match="pca", weights=weights, refit=refit, progress=False)
    assert gap(merged.model, outputs(parents[weights.index(1)])) < EXACT


def test_a_deeper_copy() -> None:
    """Blocks that add nothing, in a stream that is turned."""
    model = llama(1, 2, 12)
    deep = llama(5, 3, 12)
    for mine, theirs in ((0, 0), (2, 1)):
        deep.layers[mine].load_state_dict(model.layers[theirs].state_dict())
    deep.layers[1].attention.o_proj.weight.zero_()
    deep.layers[1].down.weight.zero_()
    for name in ("embed", "norm", "head"):
        getattr(deep, name).load_state_dict(getattr(model, name).state_dict())
    deep = rotated(deep, 15)
    assert gap(deep, outputs(model)) < EXACT
    merged = hm.merge([model, deep], tokens(), match="pca", progress=False)
    assert merged.plan.segments["layers"] == [0, 2]
    assert gap(merged.model, outputs(model)) < EXACT


def test_permuting_does_not_find_it() -> None:
    """The control: features of a turned stream meet no feature."""
    model = llama(1, 2, 12)
    merged = hm.merge(
        [model, rotated(model, 12)], tokens(), match="permute", refit=False, progress=False
    )
    assert gap(merged.model, outputs(model)) > 0.1


def test_a_plan_on_disk_gives_the_same_network(tmp_path: Path) -> None:
    parents = [llama(1, 3, 12, heads=4), llama(2, 2, 16)]
    plan = hm.plan(parents, tokens(), match="pca", progress=False)
    plan.save(tmp_path / "plan")
    again = hm.AlignmentPlan.load(tmp_path / "plan")
    first, second = (hm.apply(p, parents, tokens(), progress=False) for p in (plan, again))
    assert torch.equal(outputs(first.model), outputs(second.model))
    (stream,) = [space for space in again.spaces if space.writes]
    assert (stream.width, [len(x) for x in stream.labels]) == (16, [12, 16])
    report = next(space for space in first.report.spaces if space.name == stream.name)
    assert (report.sizes, report.width, report.merged) == ([12, 16], 16, 12)
    assert f"space {stream.name}: 12 + 16 -> 16 directions" in plan.summary()
    assert float(first.model.norm.weight.min()) == 1.0


def test_a_cut_is_refused() -> None:
    parents = [llama(1, 2, 12), llama(2, 2, 12)]
    with pytest.raises(hm.errors.InputError, match="beside match='pca'"):
        hm.plan(parents, tokens(), match="pca", stop_at=1)


def test_targets_add_up_and_pass_by() -> None:
    """A stream's target is a sum; a parent without the block brings its own past it."""
    parents = [llama(1, 3, 12), llama(2, 2, 16)]
    batch = tokens(1)[0]
    _, statistics, partitions = plan_statistics(parents, [batch], match="pca", progress=False)
    setting = statistics.setting
    projector = Projector(setting, partitions, [0.5, 0.5])
    calls = statistics.calls
    targets = Targets(projector, [p.walk(calls) for p in setting.parents], calls)
    (stream,) = [p for p in partitions.values() if p.writes]
    after = [_streams(parent, batch) for parent in parents]
    slots = setting.alignment.slots[1][0]
    groups = find_groups(setting.skeleton.graph.program, setting.skeleton.layers)
    residual = [group for group in groups if group.skip]
    assert len(residual) == 6
    for k, group in enumerate(residual):  # attention and hidden layer of every slot
        slot, part = divmod(k, 2)
        target = targets.of(group.target, group.layers[0])
        rows = target.rows(torch.arange(batch.numel()), 0, 0)[0].T
        known = max(i for i in slots[: slot + 1] if i is not None)
        theirs = after[1][known][part if slots[slot] is not None else 1]
        wanted = after[0][slot][part] @ stream.writes[0] + theirs @ stream.writes[1]
        torch.testing.assert_close(rows, wanted.flatten(0, 1), rtol=1e-9, atol=1e-9)
    assert None in slots


def _streams(model: Llama, ids: Tensor) -> list[tuple[Tensor, Tensor]]:
    """The stream behind the attention and behind the whole of every block."""
    x, found = model.embed(ids), []
    for layer in model.layers:
        middle = x + layer.attention(layer.norm1(x))
        x = layer(x)
        found.append((middle, x))
    return found
