"""Parents in forms that can be merged: one family, groups of keys in all of them or in none, tied
tensors likewise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from hetmerge.lazy import Checkpoint
from hetmerge.regrouping import regrouped
from hetmerge.restating import restated
from hetmerge.untying import untied


@dataclass(frozen=True)
class Relatives:
    """Parents that can be merged, and remarks on those that are in another form than given."""

    models: list[nn.Module | Checkpoint]
    notes: tuple[str, ...]


def relatives(models: Sequence[nn.Module | Checkpoint]) -> Relatives:
    """The parents; what cannot be merged as it is computes the same in another form.

    Raises:
        AlignmentError: classes with tensors of the same names make other functions of them.
    """
    found, notes = list(models), list[str]()
    for step in (restated, untied, regrouped):
        found, more = step(found)
        notes += more
    return Relatives(found, tuple(notes))
