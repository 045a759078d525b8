"""An output layer fitted to probabilities: convex, full-batch, without labels or randomness."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from hetmerge.batches import Call, call_for, comparable
from hetmerge.errors import InputError

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
    gram = start.new_zeros(len(start), len(start))
    rows = 0
    for x, _ in batches:
        gram += x.double().T @ x.double()
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
        loss, slope = weight.new_zeros(()), torch.zeros_like(weight)
        for x, wanted in batches:
            for part, share in _chunks(x, wanted):
                found = (part @ weight.to(part)).log_softmax(1)
                loss -= (share * found).sum().double() / rows
                slope += (part.T @ (found.exp() - share)).double() / rows
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
    head: str,
    call: Call,
    logits: Mapping[int, Tensor],
    weights: Sequence[float],
    places: Mapping[int, tuple[Tensor, int]] | None = None,
) -> Tensor:
    """What a head should answer on one batch: the parents' probabilities, averaged.

    Args:
        head: "kl": by the parents' weights; "bayes": by what each parent's probabilities of the
            tokens so far say about it, beginning with its weight.
        logits: parent -> [..., classes].
        weights: of these parents.
        places: parent -> (merged class of each of its classes, -1 for none, and their number);
            None where all parents have the same classes.

    Returns:
        [rows, classes], at the positions that count.

    Raises:
        InputError: "bayes" without token ids, or outputs that are not one per token.
    """
    shares = log_shares(head, call, logits, weights)
    rows = {m: flat_rows(x.log_softmax(-1), call, m) for m, x in logits.items()}
    return mixed(rows, shares, places)


def log_shares(
    head: str, call: Call, logits: Mapping[int, Tensor], weights: Sequence[float]
) -> Tensor:
    """[parents, rows, 1] logarithm of each parent's share in the mixture, at the positions that
    count; see :func:`mixture`."""
    found = []
    for (m, x), weight in zip(logits.items(), weights, strict=True):
        evidence = (
            _evidence(call_for(call, m), x) if head == "bayes" else x.new_zeros(x[..., :1].shape)
        )
        found.append(flat_rows(evidence, call, m) + torch.tensor(weight).log().to(x))
    shares = torch.stack(found)
    if head == "bayes":
        shares = shares.softmax(0).clamp_min(FLOOR)
        known = torch.tensor(weights, device=shares.device).reshape(-1, 1, 1) > 0
        shares = torch.where(known, shares, 0.0)
        shares = (shares / shares.sum(0)).log()
    return shares


def mixed(
    logs: Mapping[int, Tensor],
    shares: Tensor,
    places: Mapping[int, tuple[Tensor, int]] | None = None,
) -> Tensor:
    """Probabilities [rows, classes] of a mixture.

    Args:
        logs: parent -> log-probabilities [rows, its classes].
        shares: [parents, rows, 1] logarithms.
        places: see :func:`mixture`.
    """
    own = [x if places is None else _placed(x, *places[m]) for m, x in logs.items()]
    return (torch.stack(own) + shares).logsumexp(0).exp()


def flat_rows(value: Tensor, call: Call, member: int | None) -> Tensor:
    """[rows, classes] at the positions that count."""
    return comparable(value, call, member).reshape(-1, value.shape[-1])


def _placed(logs: Tensor, labels: Tensor, width: int) -> Tensor:
    """Log-probabilities [rows, merged classes]; of classes that a parent lacks minus infinity."""
    placed = logs.new_full((len(logs), width), -torch.inf)
    kept = labels >= 0
    placed[:, labels[kept]] = logs[:, kept]
    return placed


def _evidence(call: Call, logits: Tensor) -> Tensor:
    """[batch, tokens, 1]: log probability of the tokens up to each position."""
    values = (*call[1].values(), *call[0])
    named = call[1].get("input_ids")
    ids = named if named is not None else next((v for v in values if isinstance(v, Tensor)), None)
    if ids is None or ids.is_floating_point() or ids.shape != logits.shape[:2]:
        raise InputError(
            "head: got 'bayes' for models that do not give one output per input token; "
            "allowed for causal language models: use 'ridge' or 'kl'"
        )
    nexts = logits[:, :-1].gather(-1, ids[:, 1:, None])
    nexts = nexts - logits[:, :-1].logsumexp(-1, keepdim=True)
    return F.pad(nexts.cumsum(1), (0, 0, 1, 0))
