"""Work of one forward pass, counted without doing it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils import _pytree as pytree
from torch.utils.flop_counter import FlopCounterMode

from hetmerge.batches import Call, samples


def flops_of(model: nn.Module, call: Call, without: Sequence[str] = ()) -> int:
    """Floating point operations per sample: two per multiply-add of convolutions and products.

    Args:
        call: inputs; their shapes matter, their values do not.
        without: module paths whose work is left out.
    """
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    with FakeTensorMode(allow_non_fake_inputs=True) as fake, torch.no_grad():
        args, kwargs = pytree.tree_map(
            lambda v: fake.from_tensor(v.to(device)) if isinstance(v, Tensor) else v, tuple(call)
        )
        with FlopCounterMode(display=False) as counter:
            model(*args, **kwargs)
    counts = counter.get_flop_counts()
    root = type(model).__name__
    left_out = sum(sum(counts.get(f"{root}.{path}", {}).values()) for path in without)
    return int(counter.get_total_flops() - left_out) // max(1, samples(call))
