"""The table of rules: operator name -> what the operator does to axes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hetmerge.tracing.call import Call

Rule = Callable[[Call], Any]
RULES: dict[str, Rule] = {}


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Register a rule for ATen operators by name (others: ``namespace::name``)."""

    def register(function: Rule) -> Rule:
        for name in names:
            if name in RULES:
                raise ValueError(f"two rules for {name}")
            RULES[name] = function
        return function

    return register
