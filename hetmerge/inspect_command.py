"""`hetmerge inspect`: the spaces of one model, without reading weights where that is possible."""

from typing import Any

import torch

import hetmerge as hm
from hetmerge.errors import InputError
from hetmerge.hub import find
from hetmerge.lazy import empty_of
from hetmerge.pretrained import dummy_inputs, is_huggingface
from hetmerge.sources import is_factory, load_model


def run(name: str, shape: str | None, verify: bool) -> str:
    """Trace the model that `name` stands for; returns the text to print."""
    path = None if is_factory(name) else find(name).path
    folder = path if path is not None and is_huggingface(path) else None
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = {}
    if shape is not None:
        args = (torch.zeros(_shape(shape)),)
    elif folder is not None:
        kwargs = dummy_inputs(folder)
    else:
        raise InputError("--input: needed for this model, such as --input 1,3,32,32")
    model = load_model(name) if verify or folder is None else empty_of(folder).to("meta")
    graph = hm.trace(model, args, kwargs)
    lines = [graph.explain()]
    if verify:
        graph.verify(model)
        lines.append("verified: permuting every free space leaves the outputs unchanged")
    return "\n".join(lines)


def _shape(text: str) -> tuple[int, ...]:
    try:
        sizes = tuple(int(part) for part in text.split(","))
    except ValueError:
        sizes = ()
    if not sizes or min(sizes) < 1:
        raise InputError(f"--input: expected sizes above 0 such as 1,3,32,32, got {text!r}")
    return sizes
