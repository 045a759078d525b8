"""Linear sum assignment by SciPy: the specification of ``ops.assignment``."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment as _solve


def linear_sum_assignment(
    score: NDArray[Any],  # [n, m]
    maximize: bool,
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:  # [min(n, m)] each, rows ascending
    rows, cols = _solve(score, maximize=maximize)
    return rows.astype(np.int64), cols.astype(np.int64)
