"""Mixtures of experts: stored one by one, chosen token by token."""

import json

import family_models as models
import pytest
import torch
from families import pretrained as hf
from safetensors.torch import load_file, save_file

import hetmerge as hm
from hetmerge import draft
from hetmerge.alignment import find_stages
from hetmerge.batches import as_call
from hetmerge.branches import passage
from hetmerge.errors import CheckpointError
from hetmerge.fixed_order import BY_NUMBER
from hetmerge.network import Network
from hetmerge.pretrained import load_pretrained
from hetmerge.projection import Projector
from hetmerge.shards import Stored

WEIGHTS = "model.safetensors"
FUSED = "model.layers.0.mlp.experts.gate_up_proj"


@pytest.fixture
def mixtral(tmp_path):
    model = hf.lively(models.EXPERTS["mixtral"](2, 32, 4, 2), 1).float().eval()
    model.save_pretrained(tmp_path / "mixtral")
    return model, tmp_path / "mixtral"


def test_experts_stored_one_by_one_are_read_as_the_model_has_them(mixtral) -> None:
    model, folder = mixtral
    assert any(".experts.3.w1." in name for name in load_file(folder / WEIGHTS))
    state = hm.open_checkpoint(folder).state
    for name, tensor in model.state_dict().items():
        assert torch.equal(state[name], tensor), name


def test_rows_of_experts_are_read_without_the_others(mixtral, monkeypatch) -> None:
    model, folder = mixtral
    place, whole = hm.open_checkpoint(folder).state.stored[FUSED], model.state_dict()[FUSED]
    read, seen = Stored.read, []
    monkeypatch.setattr(Stored, "read", lambda self, *a: (seen.append(self), read(self, *a))[1])
    assert torch.equal(place.read(torch.tensor([2])), whole[2:3])
    assert len(seen) == 2  # w1 and w3 of one expert
    assert torch.equal(place.part(range(1, 3)).read(), whole[1:3])
    assert len(list(place.pieces())) == 8


def test_experts_that_do_not_fit_together_are_one_error(mixtral) -> None:
    _, folder = mixtral
    tensors = load_file(folder / WEIGHTS)
    name = "model.layers.1.block_sparse_moe.experts.2.w1.weight"
    tensors[name] = tensors[name][:, :5].contiguous()
    save_file(tensors, folder / WEIGHTS, {"format": "pt"})
    with pytest.raises(CheckpointError, match=r"layers\.1\.mlp\.experts\.gate_up_proj") as caught:
        hm.open_checkpoint(folder)
    assert "\n" not in str(caught.value)


def test_a_missing_expert_is_one_error(mixtral) -> None:
    _, folder = mixtral
    tensors = load_file(folder / WEIGHTS)
    for kind in ("w1", "w2", "w3"):
        del tensors[f"model.layers.0.block_sparse_moe.experts.3.{kind}.weight"]
    save_file(tensors, folder / WEIGHTS, {"format": "pt"})
    with pytest.raises(
        CheckpointError, match=r"is \[3, 128, 32\], config.json needs \[4, 128, 32\]"
    ):
        hm.open_checkpoint(folder)


@pytest.mark.parametrize("opened", [hm.open_checkpoint, load_pretrained])
def test_quantized_weights_are_refused(mixtral, opened) -> None:
    _, folder = mixtral
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "fp8"}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"quantized \(fp8 in config.json\)"):
        opened(folder)


def test_a_merge_in_memory_says_how_experts_meet() -> None:
    """Tokens reach other experts in every parent, so their features are paired by position."""
    shapes = ((2, 32, 4, 2), (3, 48, 6, 2))
    parents = [hf.lively(models.EXPERTS["mixtral"](*s), i).eval() for i, s in enumerate(shapes)]
    batches = models.inputs("mixtral")
    options = {"match": "zip", "refit": False, "progress": False, "weights": [1, 0]}
    result = hm.merge(parents, batches, **options)
    assert BY_NUMBER in result.plan.notes
    by_position = [note for note in result.plan.notes if "matched by position" in note]
    assert len(by_position) == 2
    assert all("mlp.experts" in note for note in by_position)
    with torch.no_grad():
        found, wanted = (model(**batches[0])[0] for model in (result.model, parents[0]))
    assert float((found - wanted).abs().max()) < 2e-5 * float(wanted.abs().max())


def test_an_absent_branch_of_experts_is_zero_in_their_last_matrices_alone(mixtral) -> None:
    network = Network(mixtral[0], as_call(models.inputs("mixtral")[0]))
    ((stage,),) = find_stages([network])
    found = passage(network, stage.units[1])
    assert found.exact
    assert found.scales == (("model.layers.1.mlp.experts.down_proj", 0.0),)
    ends = [layer.weight for layer in network.layers if layer.node in found.layers]
    assert ends == ["model.layers.1.self_attn.o_proj.weight"]


def test_large_tensors_are_made_in_blocks(tmp_path, monkeypatch) -> None:
    """Of the numbers that a whole tensor has."""
    for i, shape in enumerate(((2, 32, 4, 2), (3, 48, 6, 2))):
        hf.lively(models.EXPERTS["mixtral"](*shape), i).float().save_pretrained(tmp_path / str(i))
    parents, batches = [tmp_path / "0", tmp_path / "1"], models.inputs("mixtral")[:1]
    blocks, in_blocks = [], Projector.in_blocks
    for name in ("whole", "blocks"):
        hm.merge_to(tmp_path / name, parents, batches, match="permute", progress=False)
        monkeypatch.setattr(draft, "KEPT", 0)
        monkeypatch.setattr(draft, "BLOCK", 1 << 10)
        monkeypatch.setattr(Projector, "in_blocks", lambda *a: (blocks.append(0), in_blocks(*a))[1])
    assert blocks
    whole, apart = (load_file(tmp_path / name / WEIGHTS) for name in ("whole", "blocks"))
    assert whole.keys() == apart.keys()
    for name, tensor in whole.items():
        assert torch.equal(apart[name], tensor), name


def test_another_number_of_experts_for_each_token_is_told() -> None:
    parents = [hf.lively(models.EXPERTS["mixtral"](2, 32, 4, 2), i).eval() for i in range(2)]
    for layer in parents[1].model.layers:
        layer.mlp.gate.top_k = 1
    options = {"match": "identity", "refit": False, "progress": False}
    notes = hm.merge(parents, models.inputs("mixtral")[:1], **options).report.notes
    (note,) = [note for note in notes if "its code computes" in note]
    assert note.startswith("models[1]: its code computes with 1 where the merged network's has 2, ")
    assert "(and 1 more)" in note
