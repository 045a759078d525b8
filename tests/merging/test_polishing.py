"""Polishing: gradients of the right loss from the merged model, and one message for bad input."""

import copy
import math
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import hetmerge as hm
from hetmerge.polishing import RATE, Polish

sys.path.insert(0, str(Path(__file__).parent))
tf = pytest.importorskip("transformers")
from families import pretrained as hf  # noqa: E402

LOW = 1e-5  # relative; sums in another order


class Net(nn.Module):
    def __init__(self, hidden: int, classes: int, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.inner = nn.Linear(6, hidden)
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(hidden, classes)

    def forward(self, x):
        return self.head(self.drop(torch.relu(self.inner(x))))


def nets(first: int = 3, second: int = 3) -> list[nn.Module]:
    return [Net(8, first, 0).double().eval(), Net(5, second, 1).double().eval()]


def inputs(count: int = 2) -> list[torch.Tensor]:
    torch.manual_seed(2)
    return [torch.randn(32, 6, dtype=torch.float64) for _ in range(count)]


def llamas() -> tuple[list[nn.Module], list[dict[str, torch.Tensor]]]:
    models = [hf.lively(hf.llama(*shape), i) for i, shape in enumerate([(3, 32, 4, 2), (2, 48, 6)])]
    return [m.float().eval() for m in models], hf.tokens()


def divergence(model, parents, weights, batches) -> float:
    found = []
    with torch.no_grad():
        for batch in batches:
            mixed = sum(
                w * m(**batch).logits.softmax(-1) for w, m in zip(weights, parents, strict=True)
            )
            rows = model(**batch).logits.log_softmax(-1)
            kept = batch.get("attention_mask", torch.ones_like(batch["input_ids"])).bool()
            own = (mixed * (mixed.log() - rows)).sum(-1)[kept]
            found.append(float(own.mean()))
    return sum(found) / len(found)


def test_language_models_come_nearer_to_the_mixed_probabilities() -> None:
    models, batches = llamas()
    before = copy.deepcopy(models)
    weights = [0.75, 0.25]
    result = hm.merge(models, batches, weights=weights, progress=False, match="zip")
    merged = copy.deepcopy(result.model)
    better = result.polish(models, batches, steps=20, learning_rate=1e-3, progress=False)
    done = better.report.polish
    assert (done["steps"], done["learning_rate"]) == (20, 1e-3)
    assert done["loss"] == "Kullback-Leibler divergence"
    assert done["before"] == pytest.approx(divergence(merged, models, weights, batches), rel=1e-4)
    assert done["after"] == pytest.approx(
        divergence(better.model, models, weights, batches), rel=1e-4
    )
    assert done["after"] < 0.9 * done["before"]
    assert result.report.polish is None
    assert not better.model.training
    for one, other in zip([merged, *before], [result.model, *models], strict=True):
        for a, b in zip(one.parameters(), other.parameters(), strict=True):
            assert torch.equal(a, b)


def test_the_same_call_gives_the_same_bytes_and_the_public_function_the_same_model() -> None:
    models, batches = llamas()
    result = hm.merge(models, batches, progress=False, match="zip")
    options = {"steps": 3, "progress": False}
    first = result.polish(models, batches, **options).model
    second = hm.polish(result.model, models, batches, plan=result.plan, **options)
    assert all(
        torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True)
    )


@pytest.mark.parametrize("outputs", ["average", "concat"])
def test_other_models_come_nearer_to_the_merged_outputs(outputs: str) -> None:
    models, batches = nets(), inputs()
    with torch.no_grad():
        models[1].head.weight.mul_(30)  # a loud parent, which standardising makes as quiet
        logits = [torch.cat([m(x) for x in batches]) for m in models]
    result = hm.merge(models, batches, outputs=outputs, progress=False, match="zip")
    better = result.polish(models, batches, steps=60, learning_rate=1e-2, progress=False)
    wanted = sum(logits) / 2
    if outputs == "concat":
        wanted = torch.cat([(x - x.mean()) / x.std() for x in logits], 1)
    for key, model in (("before", result.model), ("after", better.model)):
        with torch.no_grad():
            found = torch.cat([model(x) for x in batches])
        assert better.report.polish[key] == pytest.approx(float(F.mse_loss(found, wanted)), rel=LOW)
    assert better.report.polish["after"] < 0.9 * better.report.polish["before"]


def test_what_is_not_refitted_is_not_scaled() -> None:
    models, batches = nets(), inputs()
    result = hm.merge(models, batches, outputs="concat", width="union", progress=False, match="zip")
    assert result.report.exact
    better = result.polish(models, batches, steps=2, progress=False)
    assert better.report.polish["before"] == pytest.approx(0, abs=1e-20)


def test_tied_and_frozen_parameters_stay_so() -> None:
    models, batches = llamas()
    for model in models:
        model.lm_head.weight = model.model.embed_tokens.weight
        model.config.tie_word_embeddings = True
        model.model.norm.weight.requires_grad_(False)
    result = hm.merge(models, batches, progress=False, match="zip")
    better = result.polish(models, batches, steps=4, learning_rate=1e-2, progress=False).model
    assert better.lm_head.weight is better.model.embed_tokens.weight
    assert not torch.equal(better.lm_head.weight, result.model.lm_head.weight)
    assert torch.equal(better.model.norm.weight, result.model.model.norm.weight)
    assert better.lm_head.weight.grad is None


def test_one_cycle_ends_at_nothing() -> None:
    for steps in (1, 2, 10, 64):
        settings = Polish(steps, 2.0)
        rates = [settings.rate(step) for step in range(steps)]
        top = rates.index(2.0)
        assert top == max(1, steps // 10) - 1
        assert rates[:top] == sorted(rates[:top])
        assert rates[top:] == sorted(rates[top:], reverse=True)
        assert 0 < min(rates) <= max(rates) == 2.0
        assert math.isclose(rates[-1], 0, abs_tol=0.01) or steps < 64
    assert 0 < RATE < 1e-2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": 0}, "polish: got 0 steps; allowed: a whole number from 1"),
        ({"steps": -3}, "polish: got -3 steps"),
        ({"steps": 2.0}, r"polish: got 2\.0 steps"),
        ({"learning_rate": 0.0}, r"learning_rate: got 0\.0; allowed: a finite number above 0"),
        ({"learning_rate": math.inf}, "learning_rate: got inf"),
        ({"batches": []}, "batches: got none; polishing needs calibration inputs"),
    ],
)
def test_bad_arguments(changes, message) -> None:
    models, batches = nets(), inputs()
    result = hm.merge(models, batches, progress=False, match="zip")
    given = {"batches": batches, "steps": 2, **changes}
    with pytest.raises(hm.InputError, match=message):
        result.polish(models, given.pop("batches"), progress=False, **given)


def test_a_loss_that_is_not_finite_names_its_step() -> None:
    models, batches = nets(), inputs()
    result = hm.merge(models, batches, progress=False, match="zip")
    with pytest.raises(hm.InputError, match="polish: the loss is not finite at step 2 of 5"):
        result.polish(models, batches, steps=5, learning_rate=1e200, progress=False)
    batches[1][0, 0] = math.nan
    with pytest.raises(hm.InputError, match="not finite before the first step"):
        result.polish(models, batches, steps=5, progress=False)


def test_what_cannot_be_trained_is_refused() -> None:
    models, batches = nets(), inputs()
    result = hm.merge(models, batches, progress=False, match="zip")
    options = {"plan": result.plan, "steps": 1, "progress": False}
    frozen = copy.deepcopy(result.model).requires_grad_(False)
    with pytest.raises(hm.InputError, match="none of its parameters is trainable"):
        hm.polish(frozen, models, batches, **options)
    with pytest.raises(hm.InputError, match="parameter 'inner.weight' is bfloat16"):
        hm.polish(copy.deepcopy(result.model).bfloat16(), models, batches, **options)


def test_partial_merges_are_refused() -> None:
    torch.manual_seed(0)
    models = [
        nn.Sequential(nn.Linear(6, n), *(nn.Sequential(nn.Linear(n, n), nn.ReLU()) for _ in "ab"),
                      nn.Linear(n, 3))
        for n in (8, 5)
    ]  # fmt: skip
    batches = [x.float() for x in inputs()]
    result = hm.merge(models, batches, stop_at=1, progress=False, match="zip")
    with pytest.raises(hm.InputError, match="partial merge.*without stop_at"):
        result.polish(models, batches, steps=1, progress=False)
