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
        accumulator.update(a, b)
    expected = reference.cka(data_a, data_b).clamp(-1, 1)
    torch.testing.assert_close(accumulator.value(), expected, rtol=1e-7, atol=1e-9)


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
    torch.testing.assert_close(cka([shifted], [y]), expected, rtol=1e-9, atol=1e-10)


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
    monkeypatch.setitem(CKA.update.__globals__["_centred_grams"].__globals__, "CHUNK", 64)
    torch.testing.assert_close(cka([x], [y]), expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(cka([x.bfloat16()], [y]), expected, rtol=0.05, atol=0.01)


def test_ratio_of_averages_not_average_of_ratios() -> None:
    small, large = layers(9, 8, [4], 0.01), layers(10, 8, [4], 100.0)
    target_small, target_large = layers(11, 8, [4]), layers(12, 8, [4])
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
        for backend in ("torch", "reference"):
            with pytest.raises(InputError, match=message):
                cka(*arguments, backend=backend)
    with pytest.raises(InputError, match="no batch"):
        CKA().value()
    with pytest.raises(InputError, match=r"\[2, 1\] layers, but \[1, 1\]"):
        CKA().update([four], [four]).update([four, four], [four])
    with pytest.raises(BackendError, match="cka has no 'native'"):
        cka([four], [four], backend="native")
