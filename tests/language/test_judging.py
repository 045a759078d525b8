"""Trials of language models are judged by the share of information that they give."""

import pytest
import torch
from language_models import llama
from torch import Tensor

import hetmerge as hm
from hetmerge.batches import as_call
from hetmerge.judging import JUDGED, _windows

ROWS, LENGTH, EXACT = 24, 10, 1e-6  # trials are rounded to six decimals


def parents() -> list:
    return [llama(ROWS, layers=2, hidden=24).double(), llama(ROWS, layers=1, hidden=16).double()]


def batches() -> list[dict[str, Tensor]]:
    random = torch.Generator().manual_seed(2)
    ids = torch.randint(0, ROWS, (48, LENGTH), generator=random)
    return [{"input_ids": part} for part in ids.split(8)]


def logs(model, ids: Tensor) -> Tensor:
    with torch.no_grad():
        return model(input_ids=ids).logits.log_softmax(-1)


def mixed(head: str, models: list, ids: Tensor, weights: list[float]) -> Tensor:
    own = [logs(model, ids) for model in models]
    if head != "bayes":
        return sum(w * x.exp() for w, x in zip(weights, own, strict=True))
    seen = []
    for w, x in zip(weights, own, strict=True):
        nexts = x[:, :-1].gather(2, ids[:, 1:, None]).cumsum(1)
        seen.append(torch.cat([torch.zeros_like(nexts[:, :1]), nexts], 1) + torch.tensor(w).log())
    shares = torch.stack(seen).softmax(0)
    return sum(s * x.exp() for s, x in zip(shares, own, strict=True))


@pytest.mark.parametrize("head", ["ridge", "bayes"])  # "ridge" is judged as "kl"
def test_shares_are_those_of_merges_made_by_hand(head: str) -> None:
    models, given, weights = parents(), batches(), [0.25, 0.75]
    options = {"head": head, "weights": weights, "progress": False}
    plan = hm.plan(models, given, match="auto", **options)
    assert list(plan.trials) == ["permute", "zip", "pca"]
    assert any("'auto' took" in note for note in plan.notes)
    ids = torch.cat([batch["input_ids"] for batch in given[1::2]])
    p = mixed(head, models, ids, weights)
    mean = p.mean((0, 1))
    most = (p * (p.log() - mean.log())).sum()
    for match, share in plan.trials.items():
        one = hm.plan(models, given[::2], match=match, **options)
        model = hm.apply(one, models, given[::2], progress=False).model
        missed = (p * (p.log() - logs(model, ids))).sum()
        # A posterior has a floor of 1e-6 in a mixture.
        assert share == pytest.approx(
            1 - float(missed / most), abs=1e-4 if head == "bayes" else EXACT
        )


def test_a_parent_beside_itself_is_all_there_is_to_know() -> None:
    model = parents()[0]
    plan = hm.plan([model, model], batches(), match="auto", refit=False, progress=False)
    assert plan.trials == pytest.approx(dict.fromkeys(plan.trials, 1.0), abs=EXACT)


def test_windows_are_spread_over_all_inputs() -> None:
    calls = [as_call({"input_ids": torch.full((4, 256), i)}) for i in range(32)]
    found = [int(call[1]["input_ids"][0, 0]) for call in _windows(calls)]
    assert len(found) == JUDGED // 256
    assert found[0] == 0
    assert found[-1] == 31
    assert len(set(found)) == len(found)
