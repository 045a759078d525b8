"""What a merge must be compared with: the ensemble, and one parent's body under a fitted head.

A merge of two specialists is only worth its name if it beats keeping one parent's body and fitting
nothing but a head to both parents' outputs. Both controls read the same unlabelled batches.
"""

from collections.abc import Iterable, Mapping, Sequence
from copy import deepcopy
from typing import Any, Literal

import torch
from torch import Tensor, nn

from hetmerge.errors import InputError

Outputs = Literal["average", "concat"]


class Ensemble(nn.Module):
    """All parents side by side; their outputs averaged or concatenated along the last axis.

    Args:
        models: the parents.
        outputs: "average" or "concat".
        batches: where given, each parent's outputs are first standardised by their mean and
            deviation on these inputs, so that parents with louder logits do not win by that alone.
    """

    def __init__(
        self,
        models: Sequence[nn.Module],
        outputs: Outputs = "average",
        batches: Iterable[Any] | None = None,
    ) -> None:
        super().__init__()
        self.models = nn.ModuleList(models)
        self.outputs = outputs
        self.scales = [(0.0, 1.0)] * len(models)
        if batches is not None:
            self.scales = [_scale(x) for x in parent_outputs(models, batches)]

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        logits = [
            (model(*args, **kwargs) - mean) / deviation
            for model, (mean, deviation) in zip(self.models, self.scales, strict=True)
        ]
        return combine(logits, self.outputs)


class Probe(nn.Module):
    """A body whose pooled outputs at the named modules feed one linear head."""

    def __init__(self, body: nn.Module, taps: Sequence[str], head: nn.Linear | None = None) -> None:
        super().__init__()
        self.body = body
        self.taps = tuple(taps)
        self.head = head

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        features = self.features(*args, **kwargs)
        return features if self.head is None else self.head(features)

    def features(self, *args: Any, **kwargs: Any) -> Tensor:  # [N, sum of widths]
        seen: list[Tensor] = []
        modules = [self.body.get_submodule(name) for name in self.taps]
        hooks = [m.register_forward_hook(lambda _m, _i, out: seen.append(out)) for m in modules]
        try:
            self.body(*args, **kwargs)
        finally:
            for hook in hooks:
                hook.remove()
        return torch.cat([x.flatten(2).mean(2) if x.dim() > 2 else x for x in seen], dim=1)


def combine(logits: Sequence[Tensor], outputs: Outputs) -> Tensor:
    """Average, or concatenate along the last axis, the outputs of several models."""
    if outputs == "concat":
        return torch.cat(list(logits), dim=-1)
    if outputs == "average":
        return torch.stack(list(logits)).mean(0)
    raise InputError(f"outputs: expected 'average' or 'concat', got {outputs!r}")


def head_control(
    body: nn.Module,
    models: Sequence[nn.Module],
    batches: Iterable[Any],
    *,
    head: str,
    outputs: Outputs = "average",
    taps: Sequence[str] = (),
    ridge: float = 1e-3,
) -> nn.Module:
    """Keep one body, fit a linear head to all parents' outputs by ridge least squares (fp64).

    Args:
        body: the parent that is kept; copied, never changed.
        models: all parents; their outputs on `batches` are the targets.
        batches: tensors, tuples or dicts, as the models take them; no labels.
        head: name of the body's last linear layer, whose input is the feature by default.
        outputs: "average" fits the mean output; "concat" fits the concatenation of each parent's
            outputs standardised by one mean and one deviation per parent.
        taps: fit on the pooled outputs of these modules instead of the head's input.
        ridge: penalty relative to the mean feature variance; the bias is not penalised.

    Returns:
        A module in eval mode with the body's weights and the fitted head.
    """
    body = deepcopy(body).eval()
    last = body.get_submodule(head)
    if not isinstance(last, nn.Linear):
        raise InputError(f"head: {head!r} is a {type(last).__name__}, expected a Linear")
    probe = Probe(body, taps)
    if not taps:
        body.set_submodule(head, nn.Identity())
        probe = Probe(body, [head])
    batches = list(batches)
    (features,) = parent_outputs([probe], batches)
    logits = [x.double() for x in parent_outputs(models, batches)]
    if outputs == "concat":
        logits = [(x - mean) / deviation for x in logits for mean, deviation in [_scale(x)]]
    fitted = _ridge(features, combine(logits, outputs), ridge)
    if taps:
        return Probe(body, taps, fitted).eval()
    body.set_submodule(head, fitted)
    return body


def parent_outputs(models: Sequence[nn.Module], batches: Iterable[Any]) -> list[Tensor]:
    """Each model's outputs on all batches, without gradients."""
    found: list[list[Tensor]] = [[] for _ in models]
    with torch.no_grad():
        for batch in batches:
            args, kwargs = _arguments(batch)
            for outputs, model in zip(found, models, strict=True):
                outputs.append(model(*args, **kwargs))
    return [torch.cat(outputs) for outputs in found]


def _scale(outputs: Tensor) -> tuple[float, float]:
    return float(outputs.double().mean()), float(outputs.double().std())


def _arguments(batch: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if isinstance(batch, Mapping):
        return (), dict(batch)
    return (batch if isinstance(batch, tuple) else (batch,)), {}


def _ridge(features: Tensor, targets: Tensor, ridge: float) -> nn.Linear:
    """Least squares from features [N, D] to targets [N, C], towards zero."""
    x, mean = features.double(), features.double().mean(0)
    x = x - mean
    gram = x.T @ x / len(x)
    gram.diagonal().add_(ridge * gram.diagonal().mean())
    weight = torch.linalg.solve(gram, x.T @ (targets - targets.mean(0)) / len(x)).T
    linear = nn.Linear(weight.shape[1], weight.shape[0]).to(features)
    with torch.no_grad():
        linear.weight.copy_(weight)
        linear.bias.copy_(targets.mean(0) - weight @ mean)
    return linear.eval()
