"""Parents in forms that can be merged: one family, groups of keys in all of them or in none."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from hetmerge.lazy import Checkpoint
from hetmerge.regrouping import regrouped, regrouping_notes
from hetmerge.restating import restated, restating_notes


def relatives(models: Sequence[nn.Module | Checkpoint]) -> list[nn.Module | Checkpoint]:
    """The parents; what cannot be merged as it is computes the same in another form."""
    return regrouped(restated(models))


def relatives_notes(models: Sequence[nn.Module | Checkpoint]) -> list[str]:
    """Remarks on the parents that :func:`relatives` changes."""
    return [*restating_notes(models), *regrouping_notes(models)]
