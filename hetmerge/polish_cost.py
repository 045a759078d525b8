"""What polishing will cost, from sizes alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from hetmerge.batches import Call, positions
from hetmerge.cost import Ledger, Meter, forward_flops, size_of
from hetmerge.network import Network
from hetmerge.setting import Setting

LOSS = 6  # values of the size of the outputs: the wanted ones, logarithms, products, gradients


@dataclass(frozen=True)
class PolishCost:
    """What training a merged network takes, on top of its parents where those are in memory.

    Attributes:
        steps: of Adam.
        parameters: of the merged network.
        state_bytes: its weights, gradients and the two moments of Adam.
        activation_bytes: of one batch: what gradients and loss need, or a parent's pass.
        flops: of all steps, and of the losses before and after.
    """

    steps: int
    parameters: int
    state_bytes: int
    activation_bytes: int
    flops: int

    @property
    def peak_bytes(self) -> int:
        """At one time."""
        return self.state_bytes + self.activation_bytes

    def summary(self) -> str:
        """The cost in words."""
        each = self.state_bytes // self.parameters
        return (
            f"polish (training): {self.steps} steps of Adam, peak memory "
            f"{size_of(self.peak_bytes)} ({each} bytes for each of {self.parameters:,} "
            "parameters: weight, gradient, two moments; activations "
            f"{size_of(self.activation_bytes)}), {self.flops / 1e9:,.0f} GFLOP"
        )


def polish_cost(
    merged: Network, setting: Setting, calls: Sequence[Call], steps: int, dtype: torch.dtype
) -> PolishCost:
    """The cost of polishing on these batches.

    Args:
        merged: the merged network, or one of its shapes without weights.
        dtype: that is computed in.
    """
    parameters = sum(p.numel() for p in merged.model.parameters())
    shares = [positions(call) / positions(setting.call) for call in calls]
    passes = (_pass_bytes(setting, m, max(shares)) for m in range(len(setting.parents)))
    theirs = sum(forward_flops(network, 1.0) for network in setting.parents)
    mine = forward_flops(merged, 1.0)
    training = steps * sum(shares) / len(shares) * (3 * mine + theirs)
    return PolishCost(
        steps,
        parameters,
        4 * dtype.itemsize * parameters,
        max(_graph_bytes(merged, max(shares)), *passes),
        int(training + 2 * sum(shares) * (mine + theirs)),
    )


def _graph_bytes(merged: Network, growth: float) -> int:
    """All values of one batch, which gradients may need, and what the loss makes of outputs."""
    ledger = Ledger(merged, growth, 1, Meter())
    ledger.hold(merged.nodes.order)
    ledger.compute(merged.graph.outputs)
    ledger.read.clear()
    return int(ledger.bytes + LOSS * sum(ledger.size(name) for name in merged.graph.outputs))


def _pass_bytes(setting: Setting, member: int, growth: float) -> int:
    """A parent's pass over one batch, unit by unit."""
    network, meter = setting.parents[member], Meter()
    ledger = Ledger(network, growth, 1, meter)
    for unit in network.nodes.in_turn(setting.alignment.stages[member]):
        ledger.compute([unit.output])
        ledger.read.clear()
    ledger.compute(network.graph.outputs)
    return int(meter.peak)
