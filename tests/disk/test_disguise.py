"""A checkpoint and its disguise, with another order in every head: what comes out is the first."""

import sys
from pathlib import Path

import pytest
import torch
from families import pretrained as hf
from family_models import GROUPED

import hetmerge as hm

sys.path.insert(0, str(Path(__file__).parents[1] / "planted"))
from disguise import disguised  # noqa: E402

# Those norms compute in float32, where sums in another order differ.
NEAR = {"gpt2": 1e-8, "llama": 1e-6, "phi3": 1e-6, "qwen2": 1e-6, "starcoder2": 1e-8}


@pytest.mark.parametrize(
    ("family", "match"),
    [*((family, "permute") for family in NEAR), ("gpt2", "zip"), ("llama", "zip")],
)
def test_disguise(family: str, match: str, tmp_path: Path) -> None:
    batches = [{"input_ids": batch["input_ids"]} for batch in hf.tokens()]
    made = hf.gpt2(2, 16) if family == "gpt2" else GROUPED[family](2, 24, 6, 2)
    model = hf.lively(made, 3).double()
    parents = [model, disguised(model, batches[0])]
    for i, parent in enumerate(parents):
        parent.save_pretrained(tmp_path / str(i))
    folders = [tmp_path / str(i) for i in range(2)]
    options = {"match": match, "dtype": torch.float64, "progress": False}
    result = hm.merge_to(tmp_path / "out", folders, batches, **options)
    assert any(space.outer for space in result.plan.spaces)
    merged = type(model).from_pretrained(tmp_path / "out", dtype=torch.float64)
    inside = hm.merge(parents, batches, match=match, progress=False).model
    state = merged.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in inside.state_dict().items())
    with torch.no_grad():
        found, wanted = (m(**batches[1]).logits for m in (merged, model))
    assert (found - wanted).abs().max() / wanted.abs().max() < NEAR[family]
