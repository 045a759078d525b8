"""An output layer fitted to probabilities: convex, full-batch, without labels or randomness."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from hetmerge.errors import InputError
from hetmerge.features import position_mask
from hetmerge.network import Call

HEADS = ("ridge", "kl", "bayes")
STEPS = 40  # of L-BFGS; later ones change the fourth digit
CHUNK = 1 << 24  # logits that exist at a time
FLOOR = 1e-6  # of a posterior, so that one surprise does not silence a parent for good


def fit_head(batches: Sequence[tuple[Tensor, Tensor]], start: Tensor, ridge: float) -> Tensor:
    """Weights of a softmax layer nearest to given probabilities, in Kullback-Leibler divergence.

    Minimises ``mean over rows of -sum_c P log softmax(X W) + ridge / 2 tr((W-W0)' G (W-W0))`` with
    G = X'X / rows, whose inverse root is also the preconditioner of L-BFGS.

    Args:
        batches: (X [rows, p], P [rows, r]) of each.
        start: W0 [p, r] float64, where the search begins.
        ridge: relative to the curvature of the inputs.

    Returns:
        W [p, r] float64.
    """
    gram = torch.zeros(len(start), len(start), dtype=torch.float64)
    rows = 0
    for x, _ in batches:
        gram += (x.double().T @ x.double()).cpu()
        rows += len(x)
    gram /= rows
    gram.diagonal().add_(1e-6 * gram.diagonal().mean())
    root = torch.linalg.cholesky(gram)  # W = root'^-1 Z
    first = root.T @ start
    z = first.contiguous().clone().requires_grad_(True)
    search = torch.optim.LBFGS(
        [z], max_iter=STEPS, history_size=20, line_search_fn="strong_wolfe", tolerance_change=1e-7
    )

    def closure() -> Tensor:
        weight = torch.linalg.solve_triangular(root.T, z.detach(), upper=True)
        loss, slope = torch.zeros((), dtype=torch.float64), torch.zeros_like(weight)
        for x, wanted in batches:
            for part, share in _chunks(x, wanted):
                found = (part @ weight.to(part)).log_softmax(1)
                loss -= (share * found).sum().double().cpu() / rows
                slope += (part.T @ (found.exp() - share)).double().cpu() / rows
        away = z.detach() - first
        slope = torch.linalg.solve_triangular(root, slope, upper=False)
        z.grad = (slope + ridge * away).contiguous()
        total: Tensor = loss + ridge / 2 * away.square().sum()
        return total

    search.step(closure)
    weight: Tensor = torch.linalg.solve_triangular(root.T, z.detach(), upper=True)
    return weight


def _chunks(x: Tensor, wanted: Tensor) -> zip[tuple[Tensor, Tensor]]:
    size = max(1, CHUNK // wanted.shape[1])
    return zip(x.split(size), wanted.split(size), strict=True)


def mixture(
    head: str, call: Call, logits: Sequence[Tensor], weights: Sequence[float]
) -> tuple[Tensor, Tensor | None]:
    """What a head should answer on one batch: the parents' probabilities, averaged.

    Args:
        head: "kl": by the parents' weights; "bayes": by what each parent's probabilities of the
            tokens so far say about it, beginning with its weight.
        logits: per parent, [..., classes].

    Returns:
        (probabilities [rows, classes], mask [rows] of the positions that count or None for all).

    Raises:
        InputError: "bayes" without token ids, or outputs that are not one per token.
    """
    logs = torch.stack([x.log_softmax(-1) for x in logits])  # [parents, ..., classes]
    share = torch.tensor(weights, dtype=torch.float64).log().to(logs)
    share = share.reshape(-1, *[1] * (logs.dim() - 1))
    if head == "bayes":
        share = (share + _evidence(call, logs)).softmax(0).clamp_min(FLOOR)
        share = torch.where(torch.tensor(weights).reshape(-1, 1, 1, 1) > 0, share, 0.0)
        share = (share / share.sum(0)).log()
    mixed = (logs + share).logsumexp(0).exp()
    rows = mixed.reshape(-1, mixed.shape[-1])
    return rows, position_mask(call[1], mixed, rows)


def _evidence(call: Call, logs: Tensor) -> Tensor:
    """[parents, batch, tokens, 1]: log probability of the tokens up to each position."""
    values = (*call[1].values(), *call[0])
    named = call[1].get("input_ids")
    ids = named if named is not None else next((v for v in values if isinstance(v, Tensor)), None)
    if ids is None or ids.is_floating_point() or ids.shape != logs.shape[1:3]:
        raise InputError(
            "head: got 'bayes' for models that do not give one output per input token; "
            "allowed for causal language models: use 'ridge' or 'kl'"
        )
    nexts = logs[:, :, :-1].gather(-1, ids[None, :, 1:, None].expand(len(logs), -1, -1, 1))
    return F.pad(nexts.cumsum(2), (0, 0, 1, 0))
