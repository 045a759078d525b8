"""What a merge must be compared with: one parent's body under a fitted head."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from lm_measure import Predictor
from torch import Tensor, nn

from hetmerge.softmax_head import fit_head, mixture

HEAD_RIDGE = 1e-3


def features(model: nn.Module, ids: Tensor, blocks: bool) -> Tensor:
    """[rows, p]: what the head reads, or what every block leaves in the stream, normalised."""
    with torch.no_grad():
        found = model.model(input_ids=ids, output_hidden_states=blocks)
        last = found.last_hidden_state
        streams = list(found.hidden_states[1:-1]) if blocks else []
        read = [x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6) for x in streams]
    return torch.cat([*read, last], -1).flatten(0, 1)


def body_and_head(
    body: nn.Module, models: Sequence[nn.Module], batches: Sequence[Tensor], head: str, blocks: bool
) -> tuple[Predictor, int]:
    """Keep one body and fit a head as a merge does: ridge to mean logits, then to probabilities.

    Returns:
        The predictor, and its number of parameters.
    """
    known = [features(body, ids, blocks) for ids in batches]
    logits = [torch.stack([_logits(m, ids) for m in models]) for ids in batches]
    start = _ridge(known, [x.mean(0).flatten(0, 1) for x in logits])
    shares = [1 / len(models)] * len(models)
    wanted = [
        mixture(head, ((), {"input_ids": ids}), dict(enumerate(x)), shares)
        for ids, x in zip(batches, logits, strict=True)
    ]
    weight = fit_head(list(zip(known, wanted, strict=True)), start, HEAD_RIDGE).float()

    def predict(ids: Tensor) -> Tensor:
        found = features(body, ids, blocks) @ weight
        return found.log_softmax(-1).reshape(*ids.shape, -1)

    own = sum(p.numel() for n, p in body.named_parameters() if n != "lm_head.weight")
    return predict, own + weight.numel()


def _logits(model: nn.Module, ids: Tensor) -> Tensor:
    with torch.no_grad():
        return model(input_ids=ids).logits


def _ridge(inputs: Sequence[Tensor], targets: Sequence[Tensor]) -> Tensor:
    x = torch.cat(list(inputs)).double()
    gram = x.T @ x
    gram.diagonal().add_(HEAD_RIDGE * gram.diagonal().mean())
    return torch.linalg.solve(gram, x.T @ torch.cat(list(targets)).double())
