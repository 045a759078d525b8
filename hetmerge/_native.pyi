import numpy as np
from numpy.typing import NDArray

from hetmerge.ops.native import View

has_cuda: bool

def zip(
    similarities: list[View],
    sizes: list[list[int]],
    budgets: list[list[int]],
    widths: list[int],
    alpha: float,
    overwrite: bool = False,
    threads: int = 1,
    rescan_limit: int = -1,
) -> list[tuple[NDArray[np.int64], NDArray[np.float64], bool, int, bool]]: ...
def check_symmetric(matrix: View, threads: int = 1) -> tuple[float, float]: ...
def mirror_upper(matrix: View, threads: int = 1) -> None: ...
