"""Rules per operator; importing this package fills the table."""

from hetmerge.tracing.rules import (
    contraction,
    convolution,
    elementwise,
    indexing,
    norms,
    recurrent,
    reductions,
    shape,
)
from hetmerge.tracing.rules.table import RULES

__all__ = [
    "RULES",
    "contraction",
    "convolution",
    "elementwise",
    "indexing",
    "norms",
    "recurrent",
    "reductions",
    "shape",
]
