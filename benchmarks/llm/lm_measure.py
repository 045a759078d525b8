"""Bits per byte of a predictor on held-out text, and predictors made of several networks."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from lm_data import DOMAINS, windows
from torch import Tensor, nn

from hetmerge.softmax_head import mixture

BATCH = 32
Predictor = Callable[[Tensor], Tensor]  # ids [batch, tokens] -> log probabilities of the next ones


@dataclass(frozen=True)
class Bits:
    """Bits per byte in each domain."""

    domains: tuple[float, ...]

    @property
    def mean(self) -> float:
        return sum(self.domains) / len(self.domains)


def bits(predict: Predictor, count: int) -> Bits:
    """On `count` stretches of each domain's test part."""
    found = []
    with torch.no_grad():
        for domain in DOMAINS:
            total = 0.0
            for ids in windows(domain, "test", count).split(BATCH):
                logs = predict(ids[:, :-1]).double()
                total -= float(logs.gather(-1, ids[:, 1:, None]).sum())
            found.append(total / (count * (ids.shape[1] - 1)) / math.log(2))
    return Bits(tuple(found))


def alone(model: nn.Module) -> Predictor:
    return lambda ids: model(input_ids=ids).logits.float().log_softmax(-1)


def mixed(models: Sequence[nn.Module], kind: str) -> Predictor:
    """Mean logits, mean probabilities ("kl"), or probabilities by Bayes over the prefix."""

    def predict(ids: Tensor) -> Tensor:
        logits = [model(input_ids=ids).logits.float() for model in models]
        if kind == "logits":
            return torch.stack(logits).mean(0).log_softmax(-1)
        shares = [1 / len(models)] * len(models)
        found = mixture(kind, ((), {"input_ids": ids}), dict(enumerate(logits)), shares)
        return found.log().reshape(logits[0].shape)

    return predict


def count_of(*models: nn.Module) -> int:
    return sum(p.numel() for model in models for p in model.parameters())
