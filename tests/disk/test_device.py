"""A merge on another device: what is written is what a merge on the CPU writes."""

import pytest
import torch
from other_device import device
from safetensors.torch import load_file

import hetmerge as hm

CASES = [
    ("llama", {"match": "zip"}),
    ("llama", {"match": "select"}),
    ("llama", {"match": "pca"}),
    ("llama", {"match": "permute", "refit": False}),
    ("heads", {"match": "zip"}),
    ("gpt2", {"match": "zip", "ridge": "auto"}),
    ("bert", {"match": "select"}),
    ("depths of bert", {"match": "zip", "missing": "repeat"}),
    ("llama", {"match": "pca", "width": 1.25, "head": "bayes"}),
    ("llama", {"match": "zip", "width": 0.75, "weights": [1.0, 0.0]}),
    ("llama", {"match": "select", "width": "union", "head": "kl"}),
    ("heads", {"match": "pca", "weights": [0.0, 1.0]}),
    ("gpt2", {"match": "identity", "depth": "tail"}),
    ("bert", {"match": "permute", "width": "union"}),
    ("vit", {"match": "zip", "refit": False}),
]


@pytest.mark.parametrize(("family", "options"), CASES)
def test_equal_to_the_cpu(parents, tmp_path, family, options):
    _, folders, batches = parents(family)
    # What is not rounded while it is corrected agrees to more digits; a ViT converts its images.
    kind = torch.float32 if family == "vit" else torch.float64
    options = {**options, "dtype": kind, "out_dtype": kind, "progress": False}
    hm.merge_to(tmp_path / "here", folders, batches, **options)
    hm.merge_to(tmp_path / "there", folders, batches, device=device(), **options)
    here, there = (load_file(tmp_path / n / "model.safetensors") for n in ("here", "there"))
    assert here.keys() == there.keys()
    for name, tensor in here.items():
        torch.testing.assert_close(there[name], tensor, rtol=1e-8, atol=1e-10)
