"""CKA against the pairwise form of the estimator."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hetmerge.errors import BackendError, InputError
from hetmerge.ops import CKA, cka
from hetmerge.reference import similarity as reference

FIXED = settings(derandomize=True, deadline=None, database=None, max_examples=100)
UNIT = 2.0**-24  # one rounding of float32


def uncertainty(layer: Tensor) -> float:
    """How far rounding in float32 can move a layer's centred Gram matrix, relative to its length.

    Each entry is a sum of d products of differences: at most (d + 3) roundings, relative to the sum
    of magnitudes, of which blocks of 2048 features bound d. Centring is an orthogonal projection
    and makes no error longer.
    """
    x = layer.flatten(1).double()
    x = x - x[0]
    n, gram = len(x), x @ x.T
    gram.fill_diagonal_(0)
    mean = gram.sum(1) / (n - 2)
    centred = gram - mean - mean[:, None] + mean.sum() / (n - 1)
    centred.fill_diagonal_(0)
    roundings = min(x.shape[1], 2048) + 3
    moved = roundings * UNIT * torch.linalg.norm(x.abs() @ x.abs().T)
    return float(moved / torch.linalg.norm(centred).clamp(min=1e-300))


def bounds(features_a: list[Tensor], features_b: list[Tensor]) -> Tensor:
    """[La, Lb] what the cosine of two centred Gram matrices can be wrong by, to first order."""
    a, b = (
        torch.tensor([uncertainty(x) for x in features]) for features in (features_a, features_b)
    )
    return 2 * (a[:, None] + b)


def layers(seed: int, samples: int, widths: list[int], scale: float = 1.0) -> list[Tensor]:
    rng = torch.Generator().manual_seed(seed)
    common = torch.randn(samples, 3, generator=rng)
    return [
        scale * (common @ torch.randn(3, d, generator=rng) + torch.randn(samples, d, generator=rng))
        for d in widths
    ]


@FIXED
@given(
    seed=st.integers(0, 2**31),
    batches=st.lists(st.integers(4, 12), min_size=1, max_size=3),
    widths_a=st.lists(st.integers(1, 20), min_size=1, max_size=4),
    widths_b=st.lists(st.integers(1, 20), min_size=1, max_size=4),
    scale=st.sampled_from([1e-6, 1.0, 1e6]),
)
def test_equals_the_pairwise_form(
    seed: int, batches: list[int], widths_a: list[int], widths_b: list[int], scale: float
) -> None:
    data_a = [layers(seed + k, n, widths_a, scale) for k, n in enumerate(batches)]
    data_b = [layers(seed - k, n, widths_b) for k, n in enumerate(batches)]
    accumulator = CKA()
    for a, b in zip(data_a, data_b, strict=True):
        accumulator.update([x.double() for x in a], [x.double() for x in b])
    expected = reference.cka(data_a, data_b).clamp(-1, 1)
    torch.testing.assert_close(accumulator.value(), expected, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("backend", ["native", "torch"])
@FIXED
@given(
    seed=st.integers(0, 2**31),
    samples=st.sampled_from([4, 5, 12, 64, 67]),
    widths=st.lists(st.sampled_from([1, 7, 130, 2100]), min_size=1, max_size=3),
    scale=st.sampled_from([1e-15, 1e-5, 1.0, 1e6, 1e19]),
    offset=st.sampled_from([0.0, 1.0, 1e3]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
)
def test_narrow_features_are_within_the_bound(
    backend: str,
    seed: int,
    samples: int,
    widths: list[int],
    scale: float,
    offset: float,
    dtype: torch.dtype,
) -> None:
    a = [(scale * (x + offset)).to(dtype) for x in layers(seed, samples, widths)]
    b = layers(seed + 1, samples, [5, 40])
    if not all(bool(x.isfinite().all()) for x in a):
        return  # float16 ends at 65504
    error = (cka(a, b, backend) - reference.cka([a], [b]).clamp(-1, 1)).abs()
    assert (error <= bounds(a, b)).all()


@pytest.mark.parametrize("backend", ["native", "torch"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_narrow_features_at_usual_sizes(dtype: torch.dtype, backend: str) -> None:
    """The bound is for the worst case; roundings of many entries cancel down to this."""
    features = [x.to(dtype) for x in layers(0, 256, [2048, 5000, 1000])]
    expected = reference.cka([features], [features])
    found = cka(features, features, backend)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    assert found.diagonal().tolist() == [1.0] * 3


@pytest.mark.parametrize("backend", ["native", "torch"])
@pytest.mark.parametrize("magnitude", [1e-30, 1e30])
def test_squares_that_float32_cannot_hold(magnitude: float, backend: str) -> None:
    a, b = layers(0, 8, [5, 30]), [x.double() for x in layers(1, 8, [4])]
    scaled = [x * magnitude for x in a]
    expected = reference.cka([scaled], [b])
    torch.testing.assert_close(cka(scaled, b, backend), expected, rtol=1e-9, atol=1e-10)


def test_estimator_by_its_definition() -> None:
    """HSIC as an average over distinct quadruples of samples, which shares no formula with ours."""
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((6, 3)), rng.standard_normal((6, 2))

    def hsic(k: np.ndarray, m: np.ndarray) -> float:
        quads = np.array(np.meshgrid(*[range(6)] * 4)).reshape(4, -1).T
        quads = quads[[len(set(q)) == 4 for q in quads.tolist()]]
        i, j, q, r = quads.T
        return float(np.mean(k[i, j] * (m[i, j] + m[q, r] - 2 * m[i, q])))

    k, m = x @ x.T, y @ y.T
    expected = hsic(k, m) / np.sqrt(hsic(k, k) * hsic(m, m))
    assert cka([torch.from_numpy(x)], [torch.from_numpy(y)]).item() == pytest.approx(expected)


def test_self_comparison_is_exactly_one() -> None:
    features = layers(0, 16, [3, 50, 50, 7])
    for other in (features, [x.clone() for x in features]):
        value = cka(features, other)
        assert value.diagonal().tolist() == [1.0] * 4
        assert value.max() <= 1
    accumulator = CKA()
    for seed in range(5):
        batch = layers(seed, 9, [4, 5])
        accumulator.update(batch, [batch[1], batch[0].clone()])
    value = accumulator.value()
    assert value[0, 1] == value[1, 0] == 1


@pytest.mark.parametrize("backend", ["native", "torch"])
@pytest.mark.parametrize("samples", [4, 37, 96])
def test_equal_layers_are_exactly_one_at_any_place(samples: int, backend: str) -> None:
    data = layers(3, samples, [1, 7, 130, 20, 3, 9, 11])
    order = [4, 2, 6, 0, 5]
    found = cka(data, [data[k].clone() for k in order], backend=backend)
    assert [float(found[k, place]) for place, k in enumerate(order)] == [1.0] * len(order)
    assert int((found == 1).sum()) == len(order)


def test_invariant_to_rotation_scale_and_shift() -> None:
    (x,) = layers(1, 32, [8])
    rotation = torch.linalg.qr(torch.randn(8, 8, generator=torch.Generator().manual_seed(2)))[0]
    (y,) = layers(3, 32, [5])
    expected = cka([x], [y])
    torch.testing.assert_close(cka([7 * x @ rotation + 3], [y]), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("offset", [0.0, 1e3, 1e5])
def test_large_means_do_not_hurt(offset: float) -> None:
    (x,), (y,) = layers(4, 24, [30]), layers(5, 24, [30])
    shifted = x + offset  # rounded to float32, so compare with exactly that
    centred = shifted.double() - shifted.double().mean(0)
    expected = reference.cka([[centred]], [[y]])
    exact = cka([shifted.double()], [y.double()])
    torch.testing.assert_close(exact, expected, rtol=1e-9, atol=1e-10)
    assert abs(float(cka([shifted], [y]) - expected)) <= float(bounds([shifted], [y]))


def test_constant_features_are_zero_not_nan() -> None:
    (x,) = layers(6, 8, [5])
    features = [x, torch.full((8, 4), 0.1), torch.zeros(8, 3), torch.ones(8, 0)]
    value = cka(features, features)
    assert value[0, 0] == 1
    assert value[1:].abs().max() == 0
    assert value[:, 1:].abs().max() == 0
    assert torch.equal(cka(features, features, backend="reference"), value)


def test_feature_maps_are_flattened_and_chunked(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(8, 3, 4, 4, generator=torch.Generator().manual_seed(7)).transpose(2, 3)
    (y,) = layers(8, 8, [6])
    expected = cka([x.flatten(1)], [y])
    monkeypatch.setitem(CKA.update.__globals__, "BLOCK", 7)
    for backend in ("native", "torch"):
        assert abs(float(cka([x], [y], backend) - expected)) <= float(bounds([x], [y]))
    chunked = cka([x.double()], [y.double()])
    torch.testing.assert_close(chunked, reference.cka([[x]], [[y]]), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(cka([x.bfloat16()], [y]), expected, rtol=0.05, atol=0.01)


def test_ratio_of_averages_not_average_of_ratios() -> None:
    # In float64: single precision leaves some 1e-8, more or less from one processor to the next.
    data = [
        layers(9, 8, [4], 0.01),
        layers(10, 8, [4], 100.0),
        layers(11, 8, [4]),
        layers(12, 8, [4]),
    ]
    small, large, target_small, target_large = ([x.double() for x in found] for found in data)
    both = CKA().update(small, target_small).update(large, target_large).value()
    mean = (cka(small, target_small) + cka(large, target_large)) / 2
    assert abs(float(both - mean)) > 0.01
    torch.testing.assert_close(
        both, reference.cka([small, large], [target_small, target_large]), rtol=1e-9, atol=1e-9
    )


def test_merge_adds_batches() -> None:
    data = [(layers(k, 8, [4, 5]), layers(k + 50, 8, [3])) for k in range(5)]
    whole, left, right = CKA(), CKA(), CKA()
    for k, (a, b) in enumerate(data):
        whole.update(a, b)
        (left if k < 2 else right).update(a, b)
    merged = CKA().merge(left).merge(CKA()).merge(right)
    assert merged.batches == 5
    torch.testing.assert_close(merged.value(), whole.value(), rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(left.value(), left.merge(CKA()).value(), rtol=0, atol=0)


def test_same_bytes_every_time() -> None:
    features = layers(12, 70, [600, 31, 5, 1])
    found = {}
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        found[threads] = cka(features, features[:2], "native")
        assert torch.equal(found[threads], cka(features, features[:2], "native"))
        assert torch.equal(found[threads], found[1])
    torch.set_num_threads(1)
    a, b = layers(13, 70, [3000, 20]), layers(14, 70, [50])
    assert torch.equal(cka(a, b), cka([x.clone() for x in a], b))
    assert torch.equal(CKA().update(a, b).value(), cka(a, b))


@pytest.mark.parametrize("backend", ["native", "torch", "reference"])
def test_registered_with_torch(backend: str) -> None:
    a, b = layers(15, 6, [3, 4]), [x.double() for x in layers(16, 6, [5])]
    torch.library.opcheck(torch.ops.hetmerge.cka.default, (a, b, backend))


def test_compiles_without_graph_breaks() -> None:
    def scores(one: Tensor, two: Tensor) -> Tensor:
        return cka([one, one * one], [two]) + 1

    (one,), (two,) = layers(17, 6, [3]), layers(18, 6, [4])
    compiled = torch.compile(scores, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(one, two), scores(one, two))


def test_rejects() -> None:
    four = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    nan = torch.full((4, 3), float("nan"))
    for arguments, message in [
        (([four[:3]], [four[:3]]), "3 samples, unbiased HSIC needs 4"),
        (([four], [torch.ones(5, 3)]), r"features_b\[0\]: 5 samples"),
        (([], [four]), "features_a: no layers"),
        (([four], []), "features_b: no layers"),
        (([four, four.long()], [four]), r"features_a\[1\]: torch.int64"),
        (([four], [four, nan]), r"features_b\[1\]: NaN"),
    ]:
        for backend in ("native", "torch", "reference"):
            with pytest.raises(InputError, match=message):
                cka(*arguments, backend=backend)
    with pytest.raises(InputError, match="no batch"):
        CKA().value()
    with pytest.raises(InputError, match=r"\[2, 1\] layers, but \[1, 1\]"):
        CKA().update([four], [four]).update([four, four], [four])
    with pytest.raises(BackendError, match="cka has no 'cuda'"):
        cka([four], [four], backend="cuda")
