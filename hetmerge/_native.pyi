from collections.abc import Sequence
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

has_cuda: bool

_View = tuple[int, int, tuple[int, ...], tuple[int, ...]]
_Real = TypeVar("_Real", np.float32, np.float64)

def zip(
    similarity: NDArray[_Real],
    sizes: list[int],
    budgets: list[int],
    width: int,
    alpha: float,
    rescan_limit: int = -1,
) -> tuple[NDArray[np.int64], NDArray[np.float64], bool, int, bool]: ...
def check_symmetric(matrix: NDArray[_Real]) -> tuple[float, float]: ...
def project(
    weights: Sequence[_View | None],
    row_labels: Sequence[_View | None],
    col_labels: Sequence[_View | None],
    shares: Sequence[float],
    out: _View,
    threads: int,
) -> None: ...
def centred_grams(
    features: Sequence[_View], grams: Sequence[_View], threads: int
) -> list[float]: ...
