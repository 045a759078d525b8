"""Linear sum assignment: the best one-to-one pairing of two feature sets."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hetmerge.errors import InputError
from hetmerge.ops.backend import choose


def linear_sum_assignment(
    score: Tensor | NDArray[Any],
    maximize: bool = True,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """Pairs (row, column), each used at most once, with the best total score.

    As ``scipy.optimize.linear_sum_assignment``, which does the work in float64, for any number of
    leading batch dimensions. Deterministic; which optimum is returned where several exist is
    SciPy's choice.

    Args:
        score: [..., n, m], real and finite, any real dtype.
        maximize: the largest total if true, else the smallest.
        backend: "auto" or "reference".

    Returns:
        rows, cols: [..., min(n, m)] int64 each, rows ascending, on the device of ``score``.

    Raises:
        InputError: ``score`` has fewer than two dimensions, is complex or not finite.
    """
    tensor = score.detach() if isinstance(score, Tensor) else torch.tensor(np.asarray(score))
    if tensor.ndim < 2:
        raise InputError(f"score: shape {list(tensor.shape)} is not [..., n, m]")
    if tensor.is_complex():
        raise InputError(f"score: dtype {tensor.dtype} is not a real one")
    matrices = tensor.cpu().to(torch.float64)
    if not bool(torch.isfinite(matrices).all()):
        raise InputError("score: has NaN or infinite entries, only finite ones are allowed")
    choose("linear_sum_assignment", backend, {"reference": None})

    from hetmerge.reference.assignment import linear_sum_assignment as reference

    *batch, n, m = matrices.shape
    pairs = np.empty((2, math.prod(batch), min(n, m)), np.int64)
    for k, matrix in enumerate(matrices.reshape(math.prod(batch), n, m).numpy()):
        pairs[:, k] = reference(matrix, maximize)
    rows, cols = torch.from_numpy(pairs).reshape(2, *batch, min(n, m)).to(tensor.device)
    return rows, cols
