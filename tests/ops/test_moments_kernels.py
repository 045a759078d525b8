"""Moments in native code and in torch: dtypes, layouts, threads, registration.

Tolerances. A float32 sum of n products is wrong by at most n 2^-24 of the sum of their absolute
values. Native runs have at most 512 samples; torch sums more, but the way it does loses less. A
standardised pair has sum |x y| / n <= 1, and a pivot at most 10 standard deviations from the mean
multiplies that by at most 1 + 10^2 (4 and 1 + 4^2 where bfloat16 features have the pivot 0).
"""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hetmerge import _native
from hetmerge.errors import BackendError, InputError
from hetmerge.ops import Moments
from hetmerge.ops.native import view
from hetmerge.ops.panels import blocks, length
from hetmerge.reference import moments as reference

FIXED = settings(derandomize=True, deadline=None, database=None, max_examples=60)
RUN = 512 * 2.0**-24
BRAIN = 2.0**-9  # rounding of bfloat16
BACKENDS = ["native", "torch"]
DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


def features_of(
    seed: int, positions: tuple[int, ...], sizes: list[int], ratio: float, dtype: torch.dtype
) -> list[Tensor]:
    """Correlated, std 1, with means 0, ratio or 2 ratio."""
    rng = torch.Generator().manual_seed(seed)
    common = torch.randn(*positions, 3, generator=rng, dtype=torch.float64)
    found = []
    for size in sizes:
        mix = torch.randn(3, size, generator=rng, dtype=torch.float64)
        x = common @ mix + torch.randn(*positions, size, generator=rng, dtype=torch.float64)
        x = x / 2 + ratio * (torch.arange(size) % 3)
        found.append(x.to(dtype))
    return found


def assert_correlates(found: Tensor, expected: Tensor, tolerance: float) -> None:
    scale = expected.diagonal().sqrt()
    error = (found - expected).abs() / torch.outer(scale, scale).clamp_min(1e-300)
    assert float(error.nan_to_num().max()) <= tolerance


@pytest.mark.parametrize("backend", BACKENDS)
@FIXED
@given(
    seed=st.integers(0, 2**31),
    sizes=st.lists(st.sampled_from([0, 1, 7, 8, 16, 17, 47, 50, 129]), min_size=1, max_size=3),
    samples=st.sampled_from([1, 2, 3, 63, 65, 511, 513, 700]),
    dtype=st.sampled_from(DTYPES),
    masked=st.booleans(),
    within=st.booleans(),
)
def test_equals_the_reference(
    backend: str,
    seed: int,
    sizes: list[int],
    samples: int,
    dtype: torch.dtype,
    masked: bool,
    within: bool,
) -> None:
    features = features_of(seed, (samples,), sizes, 1.0, dtype)
    mask = torch.rand(samples, generator=torch.Generator().manual_seed(seed)) < 0.7
    mask[0] = True
    used = mask if masked else None
    found = Moments(sizes, within=within, backend=backend).update(*features, mask=used)
    joint = reference.gather(features, 1, used)
    expected = reference.covariance(joint)
    # Close to a mean at 2 standard deviations the pivot of bfloat16 is 0.
    tolerance = 1e-12 if dtype == torch.float64 else RUN * (1 + 4.0**2)
    assert found.count == len(joint)
    torch.testing.assert_close(found.mean(), joint.mean(0), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(found.variance(), expected.diagonal(), rtol=1e-9, atol=1e-12)
    starts = [0, *torch.tensor(sizes).cumsum(0).tolist()]
    spans = [slice(a, b) for a, b in pairwise(starts)]
    if within:
        covariance = found.covariance()
        assert torch.equal(covariance, covariance.T)
        assert_close_or_small(covariance, expected, joint, tolerance)
    for a, rows in enumerate(spans):
        for b, columns in enumerate(spans):
            if a != b:
                block = found.covariance_between(a, b)
                whole = torch.zeros_like(expected)
                whole[rows, columns] = block - expected[rows, columns]
                assert_close_or_small(expected + whole, expected, joint, tolerance)


def assert_close_or_small(found: Tensor, expected: Tensor, joint: Tensor, tolerance: float) -> None:
    """Errors are small against the root mean squares about 0, from which a sum of few samples may
    cancel."""
    size = (joint.square().mean(0) + 1e-300).sqrt()
    error = (found - expected).abs() / torch.outer(size, size)
    assert error.numel() == 0 or float(error.max()) <= tolerance


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("ratio", [0.0, 10.0, 100.0, 1000.0, 3000.0])
def test_means_far_larger_than_deviations(backend: str, dtype: torch.dtype, ratio: float) -> None:
    moments, seen = Moments([9, 8], backend=backend), []
    for k in range(3):
        features = features_of(k, (1001,), [9, 8], ratio, dtype)
        moments.update(*features)
        seen.append(reference.gather(features, 1))
    joint = torch.cat(seen)
    # bfloat16: x - pivot is exact here, or the pivot is 0 and the mean within 4 deviations of it.
    assert_correlates(moments.covariance(), reference.covariance(joint), RUN * (1 + 4.0**2))
    torch.testing.assert_close(moments.mean(), joint.mean(0), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("backend", BACKENDS)
def test_the_pivot_follows_the_mean(backend: str, dtype: torch.dtype) -> None:
    """A first batch that does not represent the data must not ruin what follows."""
    moments, seen = Moments([5, 4], backend=backend), []
    for k, ratio in enumerate([0.0, *[500.0] * 40]):
        samples = 2 if k == 0 else 600
        features = features_of(k, (samples,), [5, 4], ratio, dtype)
        moments.update(*features)
        seen.append(reference.gather(features, 1))
    joint = torch.cat(seen)
    expected = reference.covariance(joint)
    assert_correlates(
        moments.covariance(), expected, 1e-10 if dtype == torch.float64 else RUN * 101
    )
    away = (moments._rows[0] - moments.mean()).abs() / expected.diagonal().sqrt()
    assert float(away.max()) <= 10


def test_a_distant_pivot_is_given_up() -> None:
    features = features_of(0, (400,), [6], 0.0, torch.float32)
    found = Moments([6], pivot=torch.full((6,), 1e5)).update(*features)
    joint = reference.gather(features, 1)
    assert_correlates(found.covariance(), reference.covariance(joint), RUN * 2)


def test_a_pivot_that_bfloat16_cannot_hold_costs_no_precision() -> None:
    features = features_of(0, (5000,), [30], 0.0, torch.bfloat16)
    found = Moments([30], pivot=torch.full((30,), 0.3)).update(*features)
    expected = reference.covariance(reference.gather(features, 1))
    assert_correlates(found.covariance(), expected, RUN)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("within", [False, True])
def test_same_bytes_for_any_number_of_threads(dtype: torch.dtype, within: bool) -> None:
    features = features_of(3, (2500,), [150, 90], 2.0, dtype)
    found = []
    threads = torch.get_num_threads()
    try:
        for count in (1, 2, 5, 2):
            torch.set_num_threads(count)
            moments = Moments([150, 90], within=within).update(*features)
            found.append((moments._rows, moments._product))
    finally:
        torch.set_num_threads(threads)
    for rows, product in found[1:]:
        assert torch.equal(rows, found[0][0])
        assert torch.equal(product, found[0][1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("backend", BACKENDS)
def test_cuts_between_batches_do_not_matter(dtype: torch.dtype, backend: str) -> None:
    features = features_of(5, (1500,), [20, 13], 1.0, dtype)
    whole = Moments([20, 13], backend=backend).update(*features)
    parts = Moments([20, 13], backend=backend)
    for begin, end in pairwise([0, 700, 701, 701, 1300, 1500]):
        parts.update(*(x[begin:end] for x in features))
    tolerance = 1e-12 if dtype == torch.float64 else RUN * 17
    assert_correlates(parts.covariance(), whole.covariance(), tolerance)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_layouts(dtype: torch.dtype, backend: str) -> None:
    """Channels first, channels last, every second channel, a transposed plane."""
    (base,) = features_of(1, (6, 7, 9), [12], 1.0, dtype)
    first = base.permute(0, 3, 1, 2)
    wide = torch.zeros(6, 24, 7, 9, dtype=dtype)
    wide[:, ::2] = first
    layouts = [first, first.contiguous(), wide[:, ::2]]
    layouts.append(first.transpose(2, 3).contiguous().transpose(2, 3))
    expected = reference.covariance(reference.gather([base] * 4, -1))
    found = Moments([12] * 4, backend=backend).update(*layouts).covariance()
    assert_correlates(found, expected, 1e-12 if dtype == torch.float64 else RUN * 17)


@pytest.mark.parametrize("backend", BACKENDS)
def test_special_values_of_float16(backend: str) -> None:
    values = torch.tensor([6e-8, -6e-8, 6e-5, 6.104e-5, 65504.0, -65504.0, 0.0, -0.0, 1.0, 1e-4])
    x = values.half()[:, None].repeat(3, 2)
    moments = Moments([2], backend=backend).update(x)
    torch.testing.assert_close(moments.mean(), x.double().mean(0), rtol=1e-12, atol=1e-12)
    expected = x.double().var(0, correction=0)
    torch.testing.assert_close(moments.variance(), expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_bad_values_are_found(backend: str, dtype: torch.dtype, bad: float) -> None:
    features = features_of(0, (130,), [20, 3], 0.0, dtype)
    features[1][77, 2] = bad
    for within in (False, True):
        moments = Moments([20, 3], within=within, backend=backend)
        with pytest.raises(InputError, match="parent 1: NaN or infinite"):
            moments.update(*features)
        assert moments.count == 0
        mask = torch.arange(130) != 77
        moments.update(*features, mask=mask)
        before = moments._product.clone()
        with pytest.raises(InputError, match="parent 1: NaN or infinite"):
            moments.update(*features)
        assert torch.equal(moments._product, before)
        assert moments.count == 129


def test_only_between_parents() -> None:
    features = features_of(0, (300,), [30, 20, 10], 3.0, torch.float32)
    whole = Moments([30, 20, 10]).update(*features)
    parts = [Moments([30, 20, 10], within=False) for _ in range(2)]
    parts[0].update(*(x[:100] for x in features))
    parts[1].update(*(x[100:] for x in features))
    across = parts[0].merge(parts[1])
    assert len(across._product) == 30 * 20 + 30 * 10 + 20 * 10
    correlation = whole.correlation()
    for found in (whole, across, Moments.from_state_dict(across.state_dict())):
        block = found.correlation_between(1, 2)
        torch.testing.assert_close(block, correlation[30:50, 50:], rtol=0, atol=RUN * 17)
        assert torch.equal(found.correlation_between(2, 1), block.T)
    for method in (Moments.covariance, Moments.correlation):
        with pytest.raises(InputError, match="within=False"):
            method(across)
    with pytest.raises(InputError, match="two different parents"):
        across.correlation_between(0, 0)
    with pytest.raises(InputError, match="two different parents"):
        across.covariance_between(0, 3)
    with pytest.raises(InputError, match="within"):
        whole.merge(across)


@pytest.mark.parametrize("level", [0, 1, 2], ids=["portable", "AVX2", "AVX-512"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_instruction_sets(level: int, dtype: torch.dtype) -> None:
    """What this processor has not is replaced by the next lower one."""
    x, y = features_of(7, (777,), [139, 58], 1.0, dtype)
    left, right = (_native.Batch.columns([view(z)], 1, None) for z in (x, y))
    shift = torch.arange(139, dtype=torch.float64) % 3
    found = torch.zeros(length([139], True), dtype=torch.float64)
    _native.moments_gram(left, view(shift), view(found), 2, level)
    block = torch.zeros(139, 58, dtype=torch.float64)
    _native.moments_cross(left, right, None, None, view(block), 2, level)
    centred = x.double() - shift
    expected = centred.T @ centred
    for kept in blocks(found, [139], True):
        part = expected[kept.rows, kept.columns]
        size = (centred.abs().T @ centred.abs())[kept.rows, kept.columns]
        # Small bfloat16 numbers minus a pivot beyond their own size are rounded.
        bound = {torch.float64: 1e-12, torch.bfloat16: 2 * BRAIN}.get(dtype, RUN)
        error = ((kept.values - part).abs() / size).triu()
        assert float(error.max()) <= bound
    whole = x.double().T @ y.double()
    error = (block - whole).abs() / (x.double().abs().T @ y.double().abs())
    assert float(error.max()) <= (1e-12 if dtype == torch.float64 else RUN)


def test_buffers_hold_every_pair_once() -> None:
    sizes = [100, 0, 90, 70]
    for within in (True, False):
        buffer = torch.zeros(length(sizes, within))
        seen = torch.zeros(260, 260)
        for block in blocks(buffer, sizes, within):
            block.values.fill_(1)
            seen[block.rows, block.columns] += 1
        assert bool((buffer == 1).all())
        parent = torch.repeat_interleave(torch.arange(4), torch.tensor(sizes))
        wanted = seen.triu() if within else seen * (parent[:, None] < parent)
        expected = torch.ones(260, 260).triu()
        expected = expected if within else (parent[:, None] < parent).float()
        assert torch.equal(wanted, expected)
    assert length([4096], True) * 8 < 4.2 * 4096**2


def test_registered_with_torch() -> None:
    x, y = torch.randn(20, 3), torch.randn(20, 2)
    mask = torch.ones(20, dtype=torch.bool)
    state = (torch.zeros((), dtype=torch.int64), torch.zeros(3, 5, dtype=torch.float64))
    product = torch.zeros(length([3, 2], True), dtype=torch.float64)
    for used in (None, mask):
        args = (*state, product, [x, y], 1, used, True, "auto")
        torch.library.opcheck(torch.ops.hetmerge.moments_update.default, args)


def test_compiles_without_breaks() -> None:
    moments, eager = Moments([3, 2]), Moments([3, 2])
    features = features_of(0, (20,), [3, 2], 1.0, torch.float32)
    mask = torch.arange(20) % 3 > 0

    def step(x: Tensor, y: Tensor, mask: Tensor) -> Tensor:
        moments.update(x, y, mask=mask)
        return x + 1

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    for _ in range(2):
        compiled(*features, mask)
        eager.update(*features, mask=mask)
    assert moments.count == eager.count == 2 * int(mask.sum())
    assert torch.equal(moments.covariance(), eager.covariance())


def test_backends_that_cannot_run() -> None:
    x = torch.ones(4, 3)
    with pytest.raises(BackendError, match="not one of"):
        Moments([3], backend="fast").update(x)
    with pytest.raises(BackendError, match="no 'cuda' implementation"):
        Moments([3], backend="cuda").update(x)
    with pytest.raises(InputError, match="16 to 64 bits"):
        Moments([3]).update(x.to(torch.float8_e4m3fn))
