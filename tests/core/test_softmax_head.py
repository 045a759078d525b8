"""The convex fit of a head: its minimum, its targets, what it refuses."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from hetmerge.errors import InputError
from hetmerge.softmax_head import FLOOR, fit_head, mixture


def problem() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(60, 4, generator=generator, dtype=torch.float64)
    x = x @ torch.diag(torch.tensor([1.0, 3.0, 0.1, 1.0], dtype=torch.float64))
    logits = torch.randn(60, 5, generator=generator, dtype=torch.float64)
    return x, (x @ torch.randn(4, 5, generator=generator).double() + logits).softmax(1)


def objective(x: Tensor, wanted: Tensor, weight: Tensor, start: Tensor, ridge: float) -> Tensor:
    gram = x.T @ x / len(x)
    gram = gram + 1e-6 * gram.diagonal().mean() * torch.eye(len(gram))
    away = weight - start
    fit = -(wanted * (x @ weight).log_softmax(1)).sum(1).mean()
    return fit + ridge / 2 * (away * (gram @ away)).sum()


@pytest.mark.parametrize("ridge", [1e-3, 1.0])
def test_the_gradient_is_zero_at_the_minimum(ridge: float) -> None:
    x, wanted = problem()
    start = torch.randn(4, 5, generator=torch.Generator().manual_seed(1)).double()
    batches = [(x[:25], wanted[:25]), (x[25:], wanted[25:])]
    weight = fit_head(batches, start, ridge).requires_grad_(True)
    value = objective(x, wanted, weight, start, ridge)
    value.backward()
    assert float(value.detach()) < float(objective(x, wanted, start, start, ridge))
    assert float(weight.grad.norm()) < 1e-3 * float(x.T.matmul(wanted).norm() / len(x))


def test_the_same_twice() -> None:
    x, wanted = problem()
    start = torch.zeros(4, 5, dtype=torch.float64)
    found = [fit_head([(x, wanted)], start, 1e-3) for _ in range(2)]
    assert torch.equal(*found)


def logits() -> tuple[Tensor, dict[int, Tensor]]:
    generator = torch.Generator().manual_seed(2)
    ids = torch.randint(5, (3, 6), generator=generator)
    return ids, {m: torch.randn(3, 6, 5, generator=generator).double() for m in range(2)}


def test_mean_of_probabilities() -> None:
    ids, found = logits()
    mixed = mixture("kl", ((ids,), {}), found, [0.75, 0.25])
    wanted = 0.75 * found[0].softmax(-1) + 0.25 * found[1].softmax(-1)
    torch.testing.assert_close(mixed, wanted.reshape(18, 5))


def test_classes_that_a_parent_lacks_have_no_share_of_its() -> None:
    ids, found = logits()
    places = {0: (torch.tensor([0, 1, 2, 3, 4]), 7), 1: (torch.tensor([5, 1, -1, 6, 4]), 7)}
    mixed = mixture("kl", ((ids,), {}), found, [0.75, 0.25], places)
    first, second = (found[m].softmax(-1).reshape(18, 5) for m in range(2))
    torch.testing.assert_close(mixed[:, 0], 0.75 * first[:, 0])
    torch.testing.assert_close(mixed[:, 5], 0.25 * second[:, 0])
    torch.testing.assert_close(mixed[:, 4], 0.75 * first[:, 4] + 0.25 * second[:, 4])


def test_bayes_over_the_prefix() -> None:
    ids, found = logits()
    mixed = mixture("bayes", ((), {"input_ids": ids}), found, [0.75, 0.25])
    p = [x.softmax(-1) for x in found.values()]
    for row in range(3):
        share = torch.tensor([0.75, 0.25]).double()
        for t in range(6):
            known = share.clamp_min(FLOOR) / share.clamp_min(FLOOR).sum()
            wanted = known[0] * p[0][row, t] + known[1] * p[1][row, t]
            torch.testing.assert_close(mixed.reshape(3, 6, 5)[row, t], wanted)
            if t < 5:
                token = ids[row, t + 1]
                share = share * torch.stack([q[row, t, token] for q in p])
                share = share / share.sum()


def test_padding_does_not_count() -> None:
    ids, found = logits()
    seen = torch.ones_like(ids)
    seen[0, 3:] = 0
    call = ((), {"input_ids": ids, "attention_mask": seen})
    mixed = mixture("kl", call, found, [0.5, 0.5])
    whole = mixture("kl", ((), {"input_ids": ids}), found, [0.5, 0.5])
    torch.testing.assert_close(mixed, whole[seen.bool().flatten()])


def test_a_parent_without_weight_is_not_heard() -> None:
    ids, found = logits()
    for head in ("kl", "bayes"):
        mixed = mixture(head, ((ids,), {}), found, [0.0, 1.0])
        torch.testing.assert_close(mixed, found[1].softmax(-1).reshape(18, 5))


def test_bayes_needs_tokens() -> None:
    _, found = logits()
    with pytest.raises(InputError, match="one output per input token"):
        mixture("bayes", ((torch.randn(3, 6),), {}), found, [0.5, 0.5])
