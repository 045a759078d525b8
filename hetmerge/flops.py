"""Work of one forward pass, counted without doing it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import fx
from torch.export import ExportedProgram
from torch.utils.flop_counter import FlopCounterMode

from hetmerge.batches import Call, samples
from hetmerge.tracing.operators import operator_name
from hetmerge.tracing.rules import contraction, convolution, recurrent
from hetmerge.tracing.rules.table import RULES

_PLACES = {module.__name__ for module in (contraction, convolution, recurrent)}
WORK = frozenset(name for name, rule in RULES.items() if rule.__module__ in _PLACES)
GROUPED = frozenset(name for name in WORK if RULES[name] is contraction.grouped_mm)


def flops_of(program: ExportedProgram, call: Call, without: Sequence[str] = ()) -> int:
    """Floating point operations per sample: two per multiply-add of convolutions and products.

    Args:
        program: exported for these inputs.
        call: inputs; their shapes matter, their values do not.
        without: module paths whose work is left out.
    """
    left_out = set(without)
    total = sum(
        _work(node)
        for node in program.graph.nodes
        if node.op == "call_function"
        and operator_name(node) in WORK
        and not left_out.intersection(_paths(node))
    )
    return total // max(1, samples(call))


def _paths(node: fx.Node) -> list[str]:
    return [path for path, _ in node.meta.get("nn_module_stack", {}).values()]


def _shape(source: fx.Node) -> Any:
    """The value without a device: some of them have fused attention that nobody counts."""
    value = source.meta["val"]
    if not isinstance(value, torch.Tensor):
        return value
    return torch.empty(value.shape, dtype=value.dtype, device="meta")


def _work(node: fx.Node) -> int:
    given: Any = fx.map_arg((node.args, node.kwargs), _shape)
    args, kwargs = given
    if operator_name(node) in GROUPED:
        rows, weight = args[:2]  # every row meets the matrix of one group
        return 2 * len(rows) * int(weight.shape[1]) * int(weight.shape[2])
    run: Any = node.target
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        run(*args, **kwargs)
    return int(counter.get_total_flops())
