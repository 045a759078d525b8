"""What whole heads and orthogonal maps need to know beyond the moments of single spaces."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from hetmerge.batches import Call, comparable, samples
from hetmerge.execution import Walker
from hetmerge.importance import SAMPLES
from hetmerge.ops.moments import Moments
from hetmerge.setting import Setting
from hetmerge.tracing.expr import Leaf, Product


def whole_axis(setting: Setting, outer: int) -> str | None:
    """The skeleton node from which a layer reads all units of `outer` with what is inside them."""
    for layer in setting.skeleton.layers:
        expr = setting.skeleton.graph.values[layer.source][layer.feature_dim]
        first = expr.parts[0] if isinstance(expr, Product) else None
        if isinstance(first, Leaf) and first.space == outer and layer.feature_dim == -1:
            return layer.source
    return None


def whole_moments(setting: Setting, calls: Sequence[Call], source: str) -> Moments:
    """Second moments of a whole axis in all parents that have it, side by side."""
    members = _members(setting, source)
    found: Moments | None = None
    for call, walkers in _walks(setting, calls):
        rows = []
        for m, node in members.items():
            value = comparable(walkers[m].value(node)[0], call, m)
            rows.append(value.reshape(-1, value.shape[-1]))
        found = found or Moments([x.shape[1] for x in rows])
        found.update(*rows)
    assert found is not None
    return found


def loudness(setting: Setting, calls: Sequence[Call], norms: Sequence[str]) -> dict[int, float]:
    """Parent -> root mean square of its stream, the geometric mean over the places before norms.

    Args:
        norms: skeleton nodes in front of the norms.
    """
    places = {name: _members(setting, name) for name in norms}
    squares: dict[tuple[int, str], list[Tensor]] = {}
    for _, walkers in _walks(setting, calls):
        for name, members in places.items():
            for m, node in members.items():
                value = walkers[m].value(node)[0].double()
                squares.setdefault((m, name), []).append(value.square().mean())
    logs: dict[int, list[Tensor]] = {}
    for (m, _), values in squares.items():
        logs.setdefault(m, []).append(torch.stack(values).mean().clamp_min(1e-300).log() / 2)
    return {m: float(torch.stack(values).mean().exp()) for m, values in logs.items()}


def _members(setting: Setting, name: str) -> dict[int, str]:
    found = {m: link.node(name) for m, link in enumerate(setting.links)}
    return {m: node for m, node in found.items() if node is not None}


def _walks(setting: Setting, calls: Sequence[Call]) -> Iterator[tuple[Call, list[Walker]]]:
    """The first inputs, each with a run of every parent on them."""
    seen = 0
    for call in calls:
        yield call, [network.walk([call]) for network in setting.parents]
        seen += samples(call)
        if seen >= SAMPLES:
            return
