from collections.abc import Callable, Sequence

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
def zip_in_rounds(
    similarities: list[View],
    sizes: list[list[int]],
    budgets: list[list[int]],
    widths: list[int],
    alpha: float,
    cuda: bool = False,
    stream: int = 0,
) -> list[tuple[NDArray[np.int64], NDArray[np.float64]] | None]: ...
def check_symmetric(matrix: View, threads: int = 1) -> tuple[float, float]: ...
def mirror_upper(matrix: View, threads: int = 1) -> None: ...

class Batch:
    """Samples of several matrices side by side; the tensors must outlive it."""

    @staticmethod
    def columns(tensors: list[View], dim: int, mask: View | None) -> Batch: ...
    @staticmethod
    def operands(parts: list[tuple[View, View, View]]) -> Batch: ...
    def part(self, source: int) -> Batch: ...
    @property
    def samples(self) -> int: ...
    @property
    def width(self) -> int: ...

def moments_sums(
    batch: Batch, count: View, rows: View, far: float, threads: int
) -> tuple[int, tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]] | None]: ...
def moments_gram(
    batch: Batch, pivot: View | None, product: View, threads: int, level: int = 2
) -> None: ...
def moments_cross(
    left: Batch,
    right: Batch,
    left_pivot: View | None,
    right_pivot: View | None,
    product: View,
    threads: int,
    level: int = 2,
) -> None: ...
def project(
    weights: Sequence[View | None],
    row_labels: Sequence[View | None],
    col_labels: Sequence[View | None],
    shares: Sequence[float],
    out: View,
    threads: int,
) -> None: ...
def project_cuda(
    weights: Sequence[View | None],
    row_labels: Sequence[View | None],
    col_labels: Sequence[View | None],
    shares: Sequence[float],
    out: View,
    allocate: Callable[[int], int],
    stream: int,
) -> bool: ...
def centred_grams(features: Sequence[View], grams: Sequence[View], threads: int) -> list[float]: ...
def scalar_products(
    rows: View, columns: View, divisor: float, threads: int
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]: ...
def linear_sum_assignment(
    scores: View, maximise: bool, threads: int, proof: bool = False
) -> tuple[
    NDArray[np.int64],
    NDArray[np.int64],
    int,
    NDArray[np.int64],
    NDArray[np.float64],
    NDArray[np.float64],
]: ...
def assign_by_team(score: View, maximise: bool) -> list[int]: ...
def assign_cuda(scores: View, maximise: bool, columns: int, prices: int, stream: int) -> str: ...
