import pytest
import torch
from torch import nn

from hetmerge.casting import cast, cast_model
from hetmerge.errors import CheckpointError


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_numbers_that_fit(dtype: torch.dtype) -> None:
    tensor = torch.tensor([65504.0, -65504.0, 1e-9])
    assert torch.equal(cast("w", tensor, dtype), tensor.to(dtype))
    assert cast("ids", torch.arange(3), dtype).dtype == torch.int64


def test_numbers_that_do_not_fit_name_their_tensor() -> None:
    message = r"tensor 'a.weight' holds 7e\+04, float16 ends at 6.55e\+04"
    with pytest.raises(CheckpointError, match=message):
        cast("a.weight", torch.tensor([1.0, -70000.0]), torch.float16)
    assert cast("a.weight", torch.tensor([70000.0]), torch.bfloat16).isfinite().all()
    assert cast("mask", torch.tensor([float("-inf")]), torch.float16).isinf().all()


def test_a_module_is_cast_whole_or_not_at_all() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    model[1].running_var.fill_(1e6)
    with pytest.raises(CheckpointError, match="tensor '1.running_var' holds 1e.06"):
        cast_model(model, torch.float16)
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    model[1].running_var.fill_(1.0)
    cast_model(model, torch.float16)
    assert {p.dtype for p in model.parameters()} == {torch.float16}
