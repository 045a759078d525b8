"""A merge of modules on another device is the merge of the same modules on the CPU."""

import copy

import pytest
import torch
from families.vision import ResNet

import hetmerge as hm
from hetmerge.batches import as_call
from hetmerge.devices import call_on

CASES = [
    {"match": "zip"},
    {"match": "auto"},
    {"match": "permute", "refit": False, "repair": "repair"},
    {"match": "zip", "budget": {"parameters": 15000}},
    {"match": "select", "stop_at": 2},
]
# Where tensors are does not depend on these; what a real device computes may.
MORE = [
    {"match": "select"},
    {"match": "zip", "refit": False, "repair": "bn"},
    {"match": "zip", "stop_at": 2, "refit": False},
    {"match": "identity", "ridge": "auto"},
    {"match": "zip", "weights": [1.0, 0.0], "width": 0.75},
]


@pytest.fixture
def check(elsewhere, monkeypatch):
    """check(models, batches, near, **options): outputs differ by this share of the largest one."""
    if not torch.cuda.is_available():
        # Counting works on fake tensors, which only torch's own devices have.
        monkeypatch.setattr("hetmerge.report.flops_of", lambda *_: 0)

    def placed(models: list) -> list:
        torch.__future__.set_swap_module_params_on_conversion(True)
        try:
            return [copy.deepcopy(model).to(elsewhere) for model in models]
        finally:
            torch.__future__.set_swap_module_params_on_conversion(False)

    def compare(models: list, batches: list, near: float, **options: object) -> None:
        here = hm.merge(models, batches, progress=False, **options).model
        there = hm.merge(placed(models), batches, progress=False, **options).model
        assert {tensor.device for tensor in there.parameters()} == {elsewhere}
        call = as_call(batches[0])
        args, kwargs = call_on(call, elsewhere)
        with torch.no_grad():
            wanted, found = here(*call[0], **call[1]), there(*args, **kwargs)
        if not isinstance(wanted, torch.Tensor):
            wanted, found = wanted.logits, found.logits
        assert (found.cpu() - wanted).abs().max() <= near * wanted.abs().max()

    return compare


@pytest.mark.parametrize(
    "options", [*CASES, *(pytest.param(case, marks=pytest.mark.gpu) for case in MORE)], ids=str
)
def test_residual_nets(check, make, images, options):
    models = [make(ResNet, (2, 2), 6, seed=1), make(ResNet, (1, 1), 8, seed=2)]
    check(models, images, 1e-9, outputs="concat", **options)


@pytest.mark.parametrize(
    "match", ["pca", *(pytest.param(match, marks=pytest.mark.gpu) for match in ("zip", "select"))]
)
def test_a_transformer(check, match):
    pretrained = pytest.importorskip("families.pretrained")
    found = [pretrained.llama(3, 32, 4, 2), pretrained.llama(2, 48, 6, 2)]
    models = [pretrained.lively(model, i + 1).double() for i, model in enumerate(found)]
    check(models, pretrained.tokens(), 1e-5, match=match)  # its norms compute in float32
