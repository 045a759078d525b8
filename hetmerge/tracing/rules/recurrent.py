"""Recurrent layers: one ordering of hidden units per layer and direction, shared by all gates."""

from __future__ import annotations

from typing import Any

from hetmerge.tracing.axes import Dim, Mismatch, concat, extent, unite
from hetmerge.tracing.call import Call, free
from hetmerge.tracing.rules.table import rule
from hetmerge.tracing.values import Const, Family, Val

GATES = {"lstm": 4, "gru": 3, "rnn_tanh": 1, "rnn_relu": 1}


@rule(*GATES)
def recurrent(call: Call) -> tuple[Any, ...]:
    x = call.val("input").dims
    if len(x) != 3:
        raise Mismatch("packed sequences")
    call.fix(x, [1 if call.args["batch_first"] else 0], "time step of a recurrent layer")
    directions = 2 if call.args["bidirectional"] else 1
    weights = iter(call.args["params"])
    per_layer = 4 if call.args["has_biases"] else 2
    if len(call.args["params"]) != call.args["num_layers"] * directions * per_layer:
        raise Mismatch("projected hidden states")
    hidden: list[Dim] = []
    last = x[2]
    for _ in range(call.args["num_layers"]):
        layer = [
            _direction(call, [next(weights) for _ in range(per_layer)], last)
            for _ in range(directions)
        ]
        hidden += layer
        last = concat(layer) if directions > 1 else layer[0]
    _start_states(call, hidden)
    batch = x[0 if call.args["batch_first"] else 1]
    states = Family(tuple(Val((batch, units)) for units in hidden), 0)
    return (Val((*x[:2], last)), *([states] * (2 if call.name == "lstm" else 1)))


def _direction(call: Call, weights: list[Any], inputs: Dim) -> Dim:
    """Unite the weights of one layer and direction; returns its hidden units."""
    from_input, from_hidden = (call.as_val(weight).dims for weight in weights[:2])
    units = free(extent(from_hidden[1]))
    unite(from_input[1], inputs)
    unite(from_hidden[1], units)
    gates = GATES[call.name]
    stacked = concat([units] * gates) if gates > 1 else units
    for weight in weights:
        unite(call.as_val(weight).dims[0], stacked)
    call.joint(inputs, units)
    for weight in weights[:2]:
        call.consume(weight, 1)
    return units


def _start_states(call: Call, hidden: list[Dim]) -> None:
    given = call.args["hx"]
    for state in given if isinstance(given, (list, tuple)) else [given]:
        if isinstance(state, Family) and state.axis == 0 and len(state.members) == len(hidden):
            for member, units in zip(state.members, hidden, strict=True):
                unite(member.dims[-1], units)
        elif not isinstance(state, Const) or state.varies:
            value = call.as_val(state)
            call.fix(value.dims, [0], "layers of a recurrent network")
            if isinstance(state, Const) and state.rank - 1 not in state.varies:
                continue
            for units in hidden:
                unite(value.dims[-1], units)
