"""Parents, ensemble and merged model under one evaluation function."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from torch import nn

from hetmerge.controls import Ensemble
from hetmerge.errors import InputError
from hetmerge.partial import PartialModel

if TYPE_CHECKING:
    from hetmerge.applying import MergeResult

Evaluate = Callable[[nn.Module], "float | Mapping[str, float]"]


def compare(
    result: MergeResult,
    models: Sequence[nn.Module],
    evaluate: Evaluate,
    batches: Iterable[Any] | None,
) -> dict[str, dict[str, float]]:
    """Who -> name -> value; see :meth:`hetmerge.applying.MergeResult.compare`."""
    parents = [copy.deepcopy(model).eval() for model in models]
    candidates = {f"parent {m}": model for m, model in enumerate(parents)}
    options = result.plan.options
    if options.labels is None:
        if options.outputs == "concat":
            candidates["ensemble"] = Ensemble(parents, "concat", batches).eval()
        else:
            candidates["ensemble"] = Ensemble(parents, "average").eval()
    candidates["merged"] = result.model
    if isinstance(result.model, PartialModel):
        for name in result.model.heads:
            candidates[f"merged, head {name}"] = result.model.branch(name)
    return {who: _score(who, model, evaluate) for who, model in candidates.items()}


def _score(who: str, model: nn.Module, evaluate: Evaluate) -> dict[str, float]:
    try:
        found = evaluate(model)
    except Exception as error:
        text = f"evaluate: raised {type(error).__name__} for {who}: {error}"
        raise InputError(text) from error
    named = found if isinstance(found, Mapping) else {"score": found}
    try:
        return {str(name): float(value) for name, value in named.items()}
    except (TypeError, ValueError) as error:
        raise InputError(
            f"evaluate: returned {type(found).__name__} for {who}; allowed: a number, or a dict of "
            "name -> number"
        ) from error
