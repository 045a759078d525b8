"""Sums of features about a shift against torch in float64, and what Moments makes of them.

n sums of float64 terms are wrong by n 2^-53 of the sum of absolute terms at most; n <= 600.
"""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hetmerge.errors import BackendError, InputError
from hetmerge.kernels import launch_sums
from hetmerge.kernels.sums import launch_judge
from hetmerge.ops import Moments
from hetmerge.ops.centring import is_far, mean_and_variance
from hetmerge.ops.operand import Operand, columns_last

FIXED = settings(derandomize=True, deadline=None, database=None, max_examples=40)
DTYPES = [torch.float32, torch.float16, torch.bfloat16]
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
RTOL = 600 * 2.0**-53


def draw(seed: int, samples: int, width: int, dtype: torch.dtype, layout: str) -> Operand:
    rng = torch.Generator().manual_seed(seed)
    x = (torch.randn(2 * samples, 3 * width + 1, generator=rng) + 3).to(DEVICE, dtype)
    if layout == "rows":
        return columns_last(x[:samples, :width].contiguous())
    if layout == "columns":
        return columns_last(x[:samples, :width].T.contiguous().T)
    if layout == "strided":
        return columns_last(x[::2, 1::3])
    mask = torch.zeros(len(x), dtype=torch.bool, device=DEVICE)
    mask[torch.randperm(len(x), generator=rng)[:samples]] = True
    x[~mask] = float("nan")
    return columns_last(x[:, :width], mask)


def check(operands: list[Operand], shift: Tensor | None) -> None:
    about, found = launch_sums(operands, shift)
    x = torch.cat([operand.dense().double() for operand in operands], 1)
    assert torch.equal(about, x[0] if shift is None else shift)
    centred = x - about
    for values, terms in zip(found, (centred, centred.square()), strict=True):
        error = (values - terms.sum(0)).abs()
        assert bool((error <= RTOL * terms.abs().sum(0)).all())


@FIXED
@given(
    seed=st.integers(0, 2**31),
    samples=st.sampled_from([1, 2, 31, 33, 600]),
    widths=st.lists(st.sampled_from([0, 1, 16, 64, 70]), min_size=1, max_size=3),
    dtypes=st.lists(st.sampled_from(DTYPES), min_size=3, max_size=3),
    layouts=st.lists(
        st.sampled_from(["rows", "columns", "strided", "masked"]), min_size=3, max_size=3
    ),
    shifted=st.booleans(),
)
def test_sums(
    seed: int,
    samples: int,
    widths: list[int],
    dtypes: list[torch.dtype],
    layouts: list[str],
    shifted: bool,
) -> None:
    operands = [
        draw(seed + m, samples, width, dtypes[m], layouts[m]) for m, width in enumerate(widths)
    ]
    total = sum(widths)
    shift = torch.linspace(-1, 5, total, dtype=torch.float64, device=DEVICE) if shifted else None
    check(operands, shift)


@pytest.mark.parametrize("largest", [3e38, 1e-30])
def test_squares_beyond_float32(largest: float) -> None:
    x = torch.tensor([[largest, -largest], [-largest, largest]], device=DEVICE)
    check([columns_last(x)], torch.zeros(2, dtype=torch.float64, device=DEVICE))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("within", [False, True])
def test_moments_as_torch_has_them(dtype: torch.dtype, within: bool) -> None:
    """Several batches: a pivot is found, kept, and moved."""
    rng = torch.Generator().manual_seed(0)
    found = [Moments([9, 20], within=within, backend=name) for name in ("triton", "torch")]
    for samples, mean in ((5, 0.0), (300, 0.5), (1, 0.0), (300, 60.0)):
        batch = [(torch.randn(samples, d, generator=rng) + mean).to(DEVICE, dtype) for d in (9, 20)]
        mask = torch.rand(samples, generator=rng) < 0.8
        for moments in found:
            moments.update(*batch, mask=mask)
    ours, expected = found
    assert ours.count == expected.count
    torch.testing.assert_close(ours.mean(), expected.mean(), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(ours.variance(), expected.variance(), rtol=1e-9, atol=1e-12)
    block = ours.correlation_between(0, 1), expected.correlation_between(0, 1)
    # float16 and bfloat16 are rounded again after the pivot, and the interpreter truncates
    atol = {torch.float32: 2.0**-16, torch.float16: 2.0**-9, torch.bfloat16: 2.0**-6}[dtype]
    torch.testing.assert_close(*block, rtol=0, atol=atol)


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("row", [0, 77])
def test_bad_values_are_found(bad: float, row: int) -> None:
    features = [torch.ones(130, d, device=DEVICE) for d in (20, 3)]
    moments = Moments([20, 3], backend="triton").update(*features)
    features[1][row, 2] = bad
    before = moments.covariance()
    for again in (moments, Moments([20, 3], backend="triton")):
        count = again.count
        with pytest.raises(InputError, match="parent 1: NaN or infinite"):
            again.update(*features)
        assert again.count == count
    assert torch.equal(moments.covariance(), before)


def test_float64_features_are_left_to_torch() -> None:
    x = torch.ones(4, 3, dtype=torch.float64, device=DEVICE)
    with pytest.raises(BackendError, match="a parent is float64"):
        Moments([3], backend="triton").update(x)
    assert Moments([3]).update(x).count == 4
    nothing = torch.zeros(4, dtype=torch.bool)
    assert Moments([3], backend="triton").update(x.float(), mask=nothing).count == 0


@pytest.mark.parametrize("count", [1, 7])
def test_judges_as_torch_does(count: int) -> None:
    rng = torch.Generator().manual_seed(0)
    means = 20 * torch.rand(600, generator=rng).double()
    found = torch.stack([means, means.square() + torch.rand(600, generator=rng)]).to(DEVICE) * count
    found[1, ::7], found[1, ::11] = float("inf"), float("nan")
    before = torch.ones_like(found)
    flags = launch_judge(before, found, count)
    finite = found[1].isfinite()
    assert torch.equal(flags % 2 == 1, finite)
    far = is_far(*mean_and_variance(count, before + found))
    assert torch.equal((flags > 1)[finite], far[finite])
    assert 0 < int(far[finite].sum()) < int(finite.sum())
