"""A merge on another device: what is written is what a merge on the CPU writes."""

from pathlib import Path

import pytest
import torch

import hetmerge as hm
from hetmerge import gathering, halfway, leastsquares, projection
from hetmerge.sources import load_model

CASES = [
    ("llama", {"match": "zip"}),
    ("llama", {"match": "select"}),
    ("llama", {"match": "permute", "refit": False}),
    ("heads", {"match": "zip"}),
    ("depths of bert", {"match": "zip", "missing": "repeat"}),
    ("llama", {"match": "pca", "width": 1.25, "head": "bayes", "ridge": "auto"}),
    ("vit", {"match": "zip", "refit": False}),
]
# Where tensors are does not depend on these; what a real device computes may.
MORE = [
    ("llama", {"match": "pca"}),
    ("gpt2", {"match": "zip", "ridge": "auto"}),
    ("bert", {"match": "select"}),
    ("llama", {"match": "zip", "width": 0.75, "weights": [1.0, 0.0]}),
    ("llama", {"match": "select", "width": "union", "head": "kl"}),
    ("heads", {"match": "pca", "weights": [0.0, 1.0]}),
    ("gpt2", {"match": "identity", "depth": "tail"}),
    ("bert", {"match": "permute", "width": "union"}),
]


@pytest.mark.parametrize(
    ("family", "options"), [*CASES, *(pytest.param(*case, marks=pytest.mark.gpu) for case in MORE)]
)
def test_equal_to_the_cpu(parents, tmp_path, elsewhere, family, options):
    _, folders, batches = parents(family)
    # What is not rounded while it is corrected agrees to more digits; a ViT converts its images.
    kind = torch.float32 if family == "vit" else torch.float64
    options = {**options, "dtype": kind, "out_dtype": kind, "progress": False}
    hm.merge_to(tmp_path / "here", folders, batches, **options)
    hm.merge_to(tmp_path / "there", folders, batches, device=elsewhere, **options)
    wanted, found = (outputs(tmp_path / name, batches, kind) for name in ("here", "there"))
    # The norms of a Llama compute in float32; a hundred roundings of 2^-24 follow one another.
    assert (found - wanted).abs().max() <= 1e-5 * wanted.abs().max()


def test_it_is_computed_there(parents, tmp_path, elsewhere, monkeypatch):
    """Statistics of the parents, products of refit and the projection of weights."""
    _, folders, batches = parents("llama")
    seen = {}
    for owner, name in ((gathering.Moments, "update"), (leastsquares.Normal, "add")):
        whole = getattr(owner, name)

        def noted(self, *given, whole=whole, name=name):
            tensor = given[-1]
            seen.setdefault(name, set()).add(tensor.device)
            return whole(self, *given)

        monkeypatch.setattr(owner, name, noted)
    project = projection.project

    def projected(weights, *given):
        seen.setdefault("project", set()).update(w.device for w in weights if w is not None)
        return project(weights, *given)

    monkeypatch.setattr(projection, "project", projected)
    hm.merge_to(tmp_path / "out", folders, batches, device=elsewhere, progress=False, match="zip")
    assert seen == dict.fromkeys(("update", "add", "project"), {elsewhere})


def outputs(folder: Path, batches: list, dtype: torch.dtype) -> torch.Tensor:
    model = load_model(str(folder), dtype)
    with torch.no_grad():
        return torch.cat([model(**batch)[0].flatten() for batch in batches])


def test_half_precision_is_near(parents, tmp_path):
    """Weights and activations are rounded to 9 bits each; pairs that hardly differ in how well they
    match, of which a zip makes many, may be other ones."""
    _, folders, batches = parents("llama")
    found = []
    for kind in (torch.float32, torch.bfloat16):
        out = tmp_path / str(kind)
        options = {"match": "permute", "out_dtype": torch.float32, "progress": False}
        hm.merge_to(out, folders, batches, dtype=kind, **options)
        found.append(outputs(out, batches, torch.float32))
    assert 0 < (found[0] - found[1]).norm() < 0.1 * found[0].norm()


@pytest.mark.gpu
def test_what_was_planned_goes_on_there(parents, tmp_path, elsewhere, monkeypatch):
    _, folders, batches = parents("llama")
    options = {"match": "zip", "refit": False, "device": elsewhere, "progress": False}
    hm.merge_to(tmp_path / "straight", folders, batches, **options)
    monkeypatch.setattr(halfway, "EVERY", 0.0)
    taken = halfway.Halfway.passed
    left = iter(range(3))

    def dies(self) -> None:
        taken(self)
        if next(left, None) is None:
            raise KeyboardInterrupt

    monkeypatch.setattr(halfway.Halfway, "passed", dies)
    with pytest.raises(KeyboardInterrupt):
        hm.merge_to(tmp_path / "out", folders, batches, **options)
    monkeypatch.setattr(halfway.Halfway, "passed", taken)
    hm.merge_to(tmp_path / "out", folders, batches, **options)
    files = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("straight", "out")]
    assert files[0] == files[1]


def test_an_unknown_device_is_refused_before_anything_is_written(parents, tmp_path):
    _, folders, batches = parents("llama")
    with pytest.raises(hm.InputError, match="device: got 'nowhere'"):
        hm.merge_to(tmp_path / "out", folders, batches, device="nowhere", match="zip")
    assert not any("out" in path.name for path in tmp_path.iterdir())


def test_models_on_two_devices_are_refused(parents, elsewhere):
    _, folders, batches = parents("llama")
    models = [
        hm.open_checkpoint(f, device=d) for f, d in zip(folders, ("cpu", elsewhere), strict=True)
    ]
    with pytest.raises(hm.InputError, match="models: are on cpu, .*; allowed: all of them on one"):
        hm.plan(models, batches, match="zip")


def test_a_device_with_and_without_its_number_is_one(parents, elsewhere):
    _, folders, batches = parents("gpt2")
    models = [
        hm.open_checkpoint(folder, device=device)
        for folder, device in zip(folders, (elsewhere.type, elsewhere), strict=True)
    ]
    assert models[0].state.device == models[1].state.device
    hm.plan(models, batches, match="identity", progress=False)
