"""Similarities for the tests of zip: correlations, and matrices full of ties, zeros and twins."""

from typing import Any

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

FIXED = settings(derandomize=True, deadline=None, database=None, max_examples=400)


def symmetric(upper: NDArray[Any]) -> NDArray[Any]:
    half = np.triu(upper, 1)
    return np.ascontiguousarray(half + half.T)


def correlations(rng: np.random.Generator, sizes: list[int], dtype: Any) -> NDArray[Any]:
    total = sum(sizes)
    shared = rng.standard_normal((total // 2 + 1, 3 * total))
    return symmetric(np.corrcoef(rng.standard_normal((total, len(shared))) @ shared)).astype(dtype)


@st.composite
def problems(draw: st.DrawFn) -> tuple[NDArray[Any], list[int], int, float, float]:
    sizes = draw(st.lists(st.integers(0, 9), min_size=1, max_size=4).filter(any))
    total = sum(sizes)
    dtype = draw(st.sampled_from([np.float32, np.float64]))
    entries = draw(
        st.sampled_from(
            [
                st.floats(-1, 1, width=32),
                st.integers(-4, 4).map(lambda k: k / 4),  # ties
                st.integers(0, 2).map(lambda k: k / 2),  # ties and zeros
                st.floats(-1, -0.125, width=32),  # all negative
                st.integers(-3, 0).map(lambda k: -(2.0**k)),  # negative ties under alpha 0.5
                st.just(0.5),
            ]
        )
    )
    matrix = symmetric(draw(hnp.arrays(dtype, (total, total), elements=entries)))
    dead = draw(st.lists(st.integers(0, total - 1), max_size=3))
    matrix[dead] = 0
    matrix[:, dead] = 0
    twins = draw(st.integers(0, total - 1)), draw(st.integers(0, total - 1))
    matrix[twins[1]] = matrix[twins[0]]
    matrix[:, twins[1]] = matrix[twins[0]]
    np.fill_diagonal(matrix, draw(st.sampled_from([0, 1, 7])))
    width = draw(st.one_of(st.just(max(sizes)), st.integers(1, total)))
    alpha = draw(st.sampled_from([0.1, 0.3, 0.5, 1.0, 1.5, 1e30]))
    beta = draw(st.sampled_from([0.0, 0.125, 0.5, 0.9, 1.0, 3.0]))
    return symmetric(matrix), sizes, width, alpha, beta
