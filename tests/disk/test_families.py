"""Every promised family: its spaces proven, and two of its members of different shape merged."""

import pytest
import torch

import hetmerge as hm

tf = pytest.importorskip("transformers")
import family_models as models  # noqa: E402
from families import pretrained as hf  # noqa: E402

FAMILIES = {**models.GROUPED, **models.EXPERTS, **models.OTHERS}
SLOPES = ("bloom", "falcon-alibi")  # those of four heads are among those of eight
POST_NORM = (
    "bert",
    "roberta",
    "distilbert",
    "layoutlm",
)  # norms in the stream itself: no unit is passed exactly


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family(tmp_path, family):
    """With all weight on one parent the merge is that parent, in more layers' and heads' room."""
    groups = 6 if family in models.OTHERS else 2
    heads = 8 if family in SLOPES else 6
    wide = hf.lively(FAMILIES[family](2, 8 * heads, heads, groups), 1).float()
    depth = 2 if family in POST_NORM else 3
    deep = hf.lively(FAMILIES[family](depth, 32, 4, min(groups, 4)), 2).float()
    batches = models.inputs(family)
    hm.trace(wide, (), batches[0]).verify(wide)
    for name, model in (("wide", wide), ("deep", deep)):
        model.save_pretrained(tmp_path / name)
    folders = [tmp_path / "wide", tmp_path / "deep"]
    options = {"match": "permute", "weights": [1, 0], "refit": False, "progress": False}
    result = hm.merge_to(tmp_path / "out", folders, batches, **options)
    assert result.plan.base == (family not in POST_NORM)
    merged = type(wide).from_pretrained(tmp_path / "out").eval()
    with torch.no_grad():
        found, wanted = (model(**batches[0])[0] for model in (merged, wide))
    # Scales of norms stand in other tensors than before: single precision, a few layers.
    assert float((found - wanted).abs().max()) < 2e-5 * float(wanted.abs().max())


def test_a_post_norm_family_says_that_depth_is_not_free():
    wide, deep = (hf.lively(FAMILIES["bert"](n, 24, 3, 3), n).float() for n in (2, 3))
    plan = hm.plan([wide, deep], models.inputs("bert"), progress=False, match="zip")
    assert any("which is not exact here" in note for note in plan.notes)


@pytest.mark.parametrize("window", [4, 16])
def test_layers_of_two_kinds_meet_their_own_kind(tmp_path, window):
    """A layer that sees less of a text is no other layer, even where the calibration text is not
    longer than what it sees."""
    kinds = ("sliding_attention", "full_attention")
    orders = [(0, 1), (0, 0, 1, 0, 0)]  # not what the family's configuration makes by itself
    folders = [tmp_path / "wide", tmp_path / "deep"]
    for i, (order, folder) in enumerate(zip(orders, folders, strict=True)):
        fixed = {"sliding_window": window, "layer_types": [kinds[k] for k in order]}
        make = models.grouped(tf.Gemma3TextConfig, tf.Gemma3ForCausalLM, **fixed)
        hf.lively(make(len(order), 48 - 16 * i, 6 - 2 * i, 2), i).float().save_pretrained(folder)
    batches = models.inputs("gemma3")
    options = {"match": "permute", "weights": [1, 0], "refit": False, "progress": False}
    result = hm.merge_to(tmp_path / "out", folders, batches, **options)
    assert [i for i, k in enumerate(result.plan.slots[0][0]) if k is not None] == [0, 2]
    wide, merged = (
        tf.Gemma3ForCausalLM.from_pretrained(p).eval() for p in (folders[0], tmp_path / "out")
    )
    assert merged.config.layer_types == [kinds[k] for k in orders[1]]
    text = {"input_ids": torch.arange(3, 35)[None]}  # longer than either window
    with torch.no_grad():
        found, wanted = (model(**text)[0] for model in (merged, wide))
    assert float((found - wanted).abs().max()) < 2e-5 * float(wanted.abs().max())
    deep = tf.Gemma3ForCausalLM.from_pretrained(folders[1])
    plan = hm.plan([wide, deep], batches, progress=False, match="zip", depth="head")
    assert any("stands at 'model.layers.1'" in note for note in plan.notes)


def test_a_unit_that_a_parent_passes_by_identity_has_the_width_of_the_others():
    """There the parent's hidden units are its stream."""
    parents = []
    for seed, (layers, width) in enumerate([(2, 24), (3, 16)]):
        config = tf.IBertConfig(
            vocab_size=models.VOCABULARY, hidden_size=width, num_hidden_layers=layers,
            num_attention_heads=width // 8, intermediate_size=2 * width, max_position_embeddings=64,
        )  # fmt: skip
        parents.append(hf.lively(tf.IBertForMaskedLM(config), seed).float())
    options = {"match": "permute", "refit": False, "progress": False}
    result = hm.merge(parents, models.inputs("ibert"), **options)
    assert result.model.config.intermediate_size == 48
