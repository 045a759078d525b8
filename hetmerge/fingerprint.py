"""Plain-data descriptions of models and inputs: enough to recognise them, without any values."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import torch
from torch import Tensor, nn

from hetmerge.batches import Call, Joint
from hetmerge.errors import PlanError
from hetmerge.lazy import Checkpoint


def fingerprint(model: nn.Module | Checkpoint) -> dict[str, Any]:
    """Class, number of parameters, and a digest of tensor names, shapes and dtypes."""
    model = model.module if isinstance(model, Checkpoint) else model
    shapes = {
        name: [list(t.shape), str(t.dtype)]
        for name, t in (*model.named_parameters(), *model.named_buffers())
    }
    text = json.dumps(shapes, sort_keys=True)
    return {
        "class": type(model).__qualname__,
        "parameters": sum(p.numel() for p in model.parameters()),
        "digest": hashlib.sha256(text.encode()).hexdigest(),
    }


def call_spec(call: Call) -> dict[str, Any]:
    """Shapes and dtypes of a batch."""
    args, kwargs = call
    spec: dict[str, Any] = {
        "args": [_describe(v) for v in args],
        "kwargs": {k: _describe(v) for k, v in kwargs.items()},
    }
    if isinstance(call, Joint):
        spec["parents"] = [call_spec(theirs) for theirs in call.parents]
    return spec


def call_from(spec: dict[str, Any]) -> Call:
    """A batch of zeros (masks: ones) of these shapes and dtypes."""
    args = tuple(_make(v, "") for v in spec["args"])
    call = (args, {k: _make(v, k) for k, v in spec["kwargs"].items()})
    if "parents" not in spec:
        return call
    parents = tuple(call_from(theirs) for theirs in spec["parents"])
    return Joint(call, parents, (torch.zeros(0, dtype=torch.int64),) * (len(parents) + 1))


def _describe(value: Any) -> dict[str, Any]:
    if isinstance(value, Tensor):
        return {"shape": list(value.shape), "dtype": str(value.dtype).removeprefix("torch.")}
    if value is None or isinstance(value, (bool, int, float, str)):
        return {"value": value}
    raise PlanError(
        f"batches: an input of type {type(value).__name__} cannot be kept in a plan; "
        "allowed: tensors, numbers, strings, booleans, None"
    )


def _make(spec: dict[str, Any], name: str) -> Any:
    if "shape" not in spec:
        return spec["value"]
    dtype = getattr(torch, spec["dtype"])
    return torch.ones(spec["shape"], dtype=dtype) if "mask" in name else torch.zeros(
        spec["shape"], dtype=dtype
    )  # fmt: skip
