"""Streaming moments against the float64 moments of the concatenated features."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hetmerge.errors import InputError
from hetmerge.ops import Moments
from hetmerge.ops.accumulate import CHUNK
from hetmerge.ops.accumulate import parts as _parts
from hetmerge.reference import moments as reference

FIXED = settings(derandomize=True, deadline=None, database=None, max_examples=100)


def draw(
    seed: int, positions: Sequence[int], sizes: Sequence[int], dim: int, mean: float = 0.0
) -> list[Tensor]:
    """Correlated float64 features, std about 1, whose means differ around ``mean``."""
    rng = torch.Generator().manual_seed(seed)
    common = torch.randn(*positions, 3, generator=rng, dtype=torch.float64)
    parents = []
    for size in sizes:
        mix = torch.randn(3, size, generator=rng, dtype=torch.float64)
        x = common @ mix + torch.randn(*positions, size, generator=rng, dtype=torch.float64)
        x = x / 2 + mean * (1 + torch.arange(size) % 3)
        parents.append(x.movedim(-1, dim).contiguous())
    return parents


def check(moments: Moments, samples: Tensor, rtol: float = 1e-12, atol: float = 1e-12) -> None:
    assert moments.count == len(samples)
    torch.testing.assert_close(moments.mean(), samples.mean(0), rtol=rtol, atol=atol)
    cov, cor = moments.covariance(), moments.correlation()
    torch.testing.assert_close(cov, reference.covariance(samples), rtol=rtol, atol=atol)
    torch.testing.assert_close(cor, reference.correlation(samples), rtol=rtol, atol=atol)
    for matrix in (cov, cor):
        assert matrix.dtype == torch.float64
        assert torch.equal(matrix, matrix.T)


@FIXED
@given(
    seed=st.integers(0, 2**31),
    sizes=st.lists(st.integers(0, 5), min_size=1, max_size=3),
    layout=st.sampled_from([((7,), 1), ((2, 3), -1), ((2, 3), 1), ((2, 3, 2), 1), ((3, 2), 0)]),
    batches=st.integers(1, 4),
    masked=st.booleans(),
    pivot=st.booleans(),
    split=st.integers(0, 4),
)
def test_equals_the_reference(
    seed: int,
    sizes: list[int],
    layout: tuple[tuple[int, ...], int],
    batches: int,
    masked: bool,
    pivot: bool,
    split: int,
) -> None:
    positions, dim = layout
    point = torch.full((sum(sizes),), 2.5) if pivot else None
    parts = [Moments(sizes, dim, point), Moments(sizes, dim)]
    rng = torch.Generator().manual_seed(seed)
    samples = []
    for k in range(batches):
        features = draw(seed + k, positions, sizes, dim, mean=3.0 * k)
        mask = torch.rand(positions, generator=rng) < 0.6 if masked else None
        parts[k >= split].update(*features, mask=mask)
        samples.append(reference.gather(features, dim, mask))
    total = torch.cat(samples)
    merged = parts[0].merge(parts[1])
    if len(total) == 0:
        with pytest.raises(InputError, match="no sample"):
            merged.covariance()
    else:
        check(merged, total, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("ratio", [0.0, 10.0, 100.0, 1000.0, 3000.0])
def test_large_means_in_float32(ratio: float) -> None:
    moments, samples = Moments([6, 5]), []
    for k in range(4):
        features = [x.float() for x in draw(k, (3000,), [6, 5], 1, mean=ratio)]
        moments.update(*features)
        samples.append(reference.gather(features, 1))
    check(moments, torch.cat(samples), rtol=1e-5, atol=2e-6)
    torch.testing.assert_close(moments.mean(), torch.cat(samples).mean(0), rtol=0, atol=2e-6)


def test_pivot_that_float32_cannot_hold() -> None:
    features = [x.float() for x in draw(0, (300,), [5], 1, mean=3000.0)]
    samples = reference.gather(features, 1)
    moments = Moments([5], pivot=samples.mean(0) + 1e-5).update(*features)
    torch.testing.assert_close(moments.mean(), samples.mean(0), rtol=0, atol=2e-6)


@pytest.mark.parametrize(
    "shape", [(CHUNK * 2 + 1,), (3, CHUNK + 1), (2, 3, 7), (2, 2, CHUNK), (0, 4)]
)
def test_parts_are_small_and_cover_everything(shape: tuple[int, ...]) -> None:
    seen = torch.zeros(shape)
    for part in _parts(shape):
        assert seen[part].numel() <= CHUNK
        seen[part] += 1
    assert bool((seen == 1).all())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_multiplied_in_float32(dtype: torch.dtype) -> None:
    features = [x.to(dtype) for x in draw(0, (700,), [6, 5], 1, mean=20.0)]
    check(Moments([6, 5]).update(*features), reference.gather(features, 1), 1e-5, 2e-6)


def test_mixed_dtypes() -> None:
    features = draw(0, (50,), [3, 2], 1)
    features[0] = features[0].float()
    check(Moments([3, 2]).update(*features), reference.gather(features, 1))


@pytest.mark.parametrize("layout", [((CHUNK + 77,), 1), ((3, 50, 41), 1), ((2, CHUNK + 5), -1)])
@pytest.mark.parametrize("masked", [False, True])
def test_more_positions_than_a_chunk(layout: tuple[tuple[int, ...], int], masked: bool) -> None:
    positions, dim = layout
    features = draw(0, positions, [4, 3], dim, mean=5.0)
    mask = torch.rand(positions, generator=torch.Generator().manual_seed(1)) < 0.5
    used = mask if masked else None
    check(Moments([4, 3], dim).update(*features, mask=used), reference.gather(features, dim, used))


def test_more_features_than_a_panel() -> None:
    features = draw(0, (90,), [150, 141], 1, mean=5.0)
    check(Moments([150, 141]).update(*features), reference.gather(features, 1))


def test_strided_features() -> None:
    wide = draw(0, (40, 6), [8], 1)[0]
    features = [wide[::2, ::2, ::3], wide[::2, 1::2, 1::3]]
    check(Moments([4, 4]).update(*features), reference.gather(features, 1))


def test_mask_broadcasts_and_hides_nan() -> None:
    features = draw(0, (4, 6), [3, 2], -1)
    mask = torch.tensor([True, True, False, True, False, True])
    hidden = [x.clone() for x in features]
    for x in hidden:
        x[:, ~mask] = float("nan")
    moments = Moments([3, 2], -1).update(*hidden, mask=mask)
    check(moments, reference.gather(features, -1, mask.expand(4, 6)))


def test_a_batch_without_samples_changes_nothing() -> None:
    features = draw(0, (9,), [3], 1)
    moments = Moments([3]).update(torch.zeros(0, 3)).update(features[0], mask=torch.zeros(9).bool())
    assert moments.count == 0
    check(moments.update(*features), reference.gather(features, 1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("pivot", [None, 1.0])
def test_dead_features_are_exactly_zero(dtype: torch.dtype, pivot: float | None) -> None:
    moments = Moments([4], pivot=None if pivot is None else torch.full((4,), pivot))
    for k in range(3):
        (x,) = draw(k, (57,), [4], 1)
        x[:, 1] = 0.0
        x[:, 3] = 0.1
        moments.update(x.to(dtype))
    cor = moments.correlation()
    assert cor[[1, 3]].abs().max() == 0
    assert cor[:, [1, 3]].abs().max() == 0
    assert cor[0, 0] == pytest.approx(1)
    assert abs(float(cor[0, 2])) > 0.01


def test_merge_of_shards_with_distant_pivots() -> None:
    near, far = draw(0, (60,), [3, 2], 1), draw(1, (40,), [3, 2], 1, mean=50.0)
    right = Moments([3, 2]).update(*far)
    before = right.covariance()
    merged = Moments([3, 2]).update(*near).merge(right)
    check(merged, torch.cat([reference.gather(near, 1), reference.gather(far, 1)]))
    assert torch.equal(right.covariance(), before)
    alone = Moments([3, 2]).merge(right)
    alone.update(*near)
    check(alone, torch.cat([reference.gather(far, 1), reference.gather(near, 1)]))
    assert torch.equal(right.covariance(), before)


def test_state_survives() -> None:
    first, second = draw(0, (30,), [3, 0], 1), draw(1, (20,), [3, 0], 1)
    moments = Moments([3, 0], dim=1).update(*first)
    copy = Moments.from_state_dict(moments.state_dict())
    assert (copy.sizes, copy.dim, copy.count) == ((3, 0), 1, 30)
    before = moments.covariance()
    assert torch.equal(copy.covariance(), before)
    copy.update(*second)
    assert moments.count == 30
    assert torch.equal(moments.covariance(), before)
    pairs = zip(first, second, strict=True)
    check(copy, reference.gather([torch.cat([a, b]) for a, b in pairs], 1))
    empty = Moments.from_state_dict(Moments([3, 0]).state_dict())
    check(empty.update(*first), reference.gather(first, 1))


def test_does_not_keep_or_change_its_input() -> None:
    x = torch.ones(5, 2, requires_grad=True)
    moments = Moments([2]).update(x * 2)
    assert not moments.covariance().requires_grad
    assert torch.equal(x.detach(), torch.ones(5, 2))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("masked", [False, True])
def test_bad_values_name_the_parent_and_add_nothing(bad: float, masked: bool) -> None:
    features = draw(0, (CHUNK + 10,), [3, 2], 1)
    moments = Moments([3, 2]).update(*features)
    before = moments.covariance()
    features[1][-1, 1] = bad
    mask = torch.ones(CHUNK + 10, dtype=torch.bool) if masked else None
    with pytest.raises(InputError, match="parent 1: NaN or infinite"):
        moments.update(*features, mask=mask)
    assert torch.equal(moments.covariance(), before)


TWO = [torch.ones(4, 3), torch.ones(4, 2)]


@pytest.mark.parametrize(
    ("features", "options", "message"),
    [
        (TWO[:1], {}, "1 tensors for 2 parents"),
        ([TWO[0], torch.ones(4, 3)], {}, "parent 1: shape"),
        ([TWO[0], torch.ones(5, 2)], {}, "parent 1: .* positions"),
        ([TWO[0].long(), TWO[1]], {}, "parent 0: torch.int64"),
        ([torch.ones(3), torch.ones(2)], {}, "parent 0: shape"),
        (TWO, {"mask": torch.ones(4)}, "mask: torch.float32"),
        (TWO, {"mask": torch.ones(3).bool()}, "mask: torch.bool"),
    ],
)
def test_rejects(features: list[Tensor], options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Moments([3, 2]).update(*features, **options)


def test_rejects_without_data() -> None:
    for sizes in ([], [-1]):
        with pytest.raises(InputError, match="sizes"):
            Moments(sizes)
    with pytest.raises(InputError, match="pivot"):
        Moments([2], pivot=torch.zeros(3))
    with pytest.raises(InputError, match="parent 0: shape"):
        Moments([2], dim=2).update(torch.ones(2, 2))
    with pytest.raises(InputError, match="sizes"):
        Moments([2]).merge(Moments([3]))
    for method in (Moments.mean, Moments.covariance, Moments.correlation):
        with pytest.raises(InputError, match="no sample"):
            method(Moments([2]))
