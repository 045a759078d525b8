"""How wide a space becomes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from hetmerge.errors import InputError
from hetmerge.tracing.spaces import Space

BUDGETS = ("parameters", "flops")
Width = str | float | Mapping[str, int | float | str]


def target_width(width: Width, space: Space, sizes: list[int]) -> int:
    """Merged features of a space, from its sizes in the parents.

    A factor that is not given by name makes more heads or groups, and leaves what is inside each of
    them as wide as it is.
    """
    name, table = space.name, width if isinstance(width, Mapping) else {"default": width}
    choice = table.get(name, table.get("default", "max"))
    inside = bool(space.structure) and name not in table and isinstance(choice, (int, float))
    if choice == "max":
        return max(sizes)
    if choice == "union":
        return sum(sizes)
    if (
        isinstance(choice, bool)
        or not isinstance(choice, (int, float))
        or not 0 < choice < math.inf
    ):
        raise InputError(
            f"width: got {choice!r} for space {name!r}; allowed: 'max', 'union', a positive factor "
            "of the widest parent, or a dict of space name -> such a value or a number of features"
        )
    absolute = isinstance(width, Mapping) and isinstance(choice, int)
    target = choice if absolute else round((1 if inside else choice) * max(sizes))
    return int(min(max(target, 1), sum(sizes)))


def check_names(width: Width, spaces: Sequence[Space]) -> None:
    if isinstance(width, Mapping):
        known = {space.name for space in spaces} | {"default"}
        wrong = sorted(set(width) - known)
        if wrong:
            raise InputError(f"width: no space {wrong[0]!r}; spaces are {', '.join(sorted(known))}")


def check_budget(budget: object, width: Width) -> None:
    """One of `BUDGETS` with a number, and no width beside it.

    Raises:
        InputError: it is something else.
    """
    if budget is None:
        return
    if not is_budget(budget):
        raise InputError(
            f"budget: got {budget!r}; allowed: {{'parameters': most}} or {{'flops': most}}, "
            "with a finite number above 0"
        )
    if width != "max":
        raise InputError(
            f"budget: got {budget!r} beside width={width!r}; allowed: one of them, a budget "
            "chooses the widths itself (leave width='max')"
        )


def check_architecture(architecture: object, width: Width, budget: object) -> None:
    """Numbers by name, and no other dial beside them.

    Raises:
        InputError: it is something else.
    """
    if architecture is None:
        return
    if not is_architecture(architecture):
        raise InputError(
            f"architecture: got {architecture!r}; allowed: names of whole numbers in a "
            "configuration with their values, such as {'hidden_size': 2048}"
        )
    if width != "max" or budget is not None:
        raise InputError(
            f"architecture: got {architecture!r} beside width={width!r}, budget={budget!r}; "
            "allowed: one of them"
        )


def is_architecture(value: object) -> bool:
    """Names with whole numbers above 0."""
    return (
        isinstance(value, Mapping)
        and bool(value)
        and all(isinstance(k, str) and type(v) is int and v > 0 for k, v in value.items())
    )


def is_budget(value: object) -> bool:
    """One of `BUDGETS` with a finite number above 0."""
    if not isinstance(value, Mapping) or len(value) != 1:
        return False
    ((name, most),) = value.items()
    number = isinstance(most, (int, float)) and not isinstance(most, bool)
    return name in BUDGETS and number and 0 < most < math.inf
