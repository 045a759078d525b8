"""Triton Gram matrices and centring against float64.

Tolerances, relative to |x| |y| summed over the features: as in test_moments.py. Centring takes
float32 to float32 through float64: one rounding, 2^-23 of the largest entry.
"""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hetmerge.errors import InputError
from hetmerge.kernels import launch_centre, launch_grams
from hetmerge.ops import cka

FIXED = settings(derandomize=True, deadline=None, database=None, max_examples=40)
SMALL = {"BN": 16, "BD": 16, "warps": 4, "stages": 2, "precision": "ieee"}
RTOL = {torch.float32: 2.0**-20, torch.float16: 2.0**-9, torch.bfloat16: 2.0**-6}
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def check(features: Sequence[Tensor], config: dict[str, object] | None) -> Tensor:
    grams = launch_grams(features, config)
    samples = len(features[0])
    assert grams.shape == (len(features), samples, samples)
    assert torch.equal(grams, grams.mT)
    for gram, x in zip(grams, features, strict=True):
        centred = x.double() - x[:1].double()
        bound = RTOL[x.dtype] * (centred.abs() @ centred.abs().T)
        assert bool(((gram.double() - centred @ centred.T).abs() <= bound + 1e-12).all())
    return grams


@FIXED
@given(
    seed=st.integers(0, 2**31),
    samples=st.sampled_from([0, 1, 4, 16, 37]),
    widths=st.lists(st.sampled_from([0, 1, 16, 45]), min_size=1, max_size=4),
    dtypes=st.lists(st.sampled_from(list(RTOL)), min_size=4, max_size=4),
    mean=st.sampled_from([0.0, 100.0]),
    transposed=st.booleans(),
)
def test_grams(
    seed: int,
    samples: int,
    widths: list[int],
    dtypes: list[torch.dtype],
    mean: float,
    transposed: bool,
) -> None:
    rng = torch.Generator().manual_seed(seed)
    features = []
    for width, dtype in zip(widths, dtypes, strict=False):
        x = (mean + torch.randn(samples, width, generator=rng)).to(DEVICE, dtype)
        features.append(x.T.contiguous().T if transposed else x)
    check(features, SMALL)


@pytest.mark.parametrize("dtype", list(RTOL), ids=str)
def test_split_features(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hetmerge.kernels.similarity.MIN_RUN", 16)
    rng = torch.Generator().manual_seed(0)
    features = [torch.randn(20, d, generator=rng).to(DEVICE, dtype) for d in (100, 700)]
    assert torch.equal(check(features, SMALL), check(features, SMALL))
    check(features, None)


@pytest.mark.parametrize("samples", [4, 17, 130])
def test_centre(samples: int) -> None:
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(3, samples, 8, generator=rng).to(DEVICE)
    grams = x @ x.mT
    grams = (grams + grams.mT) / 2
    found = launch_centre(grams)
    assert torch.equal(found, found.mT)
    wide = grams.double()
    wide.diagonal(dim1=1, dim2=2).zero_()
    mean = wide.sum(2) / (samples - 2)
    expected = wide - mean[:, :, None] - mean[:, None, :]
    expected += (mean.sum(1) / (samples - 1))[:, None, None]
    expected.diagonal(dim1=1, dim2=2).zero_()
    error = (found.double() - expected).abs().max()
    assert float(error) <= 2.0**-23 * float(expected.abs().max())


def test_constant_features_are_exactly_zero() -> None:
    features = [torch.full((9, 33), 0.1, device=DEVICE), torch.zeros(9, 4, device=DEVICE)]
    assert not launch_centre(launch_grams(features)).any()


@pytest.mark.filterwarnings("ignore:overflow:RuntimeWarning", "ignore:invalid:RuntimeWarning")
def test_cka_as_torch_has_it() -> None:
    """Layers that float32 holds, that it does not, and that are constant, of both models."""
    rng = torch.Generator().manual_seed(0)
    base = torch.randn(20, 40, generator=rng).to(DEVICE)
    first = [base, base.half(), base.double(), base * 1e25, torch.ones_like(base)]
    second = [base[:, :7] * 1e-15, base.bfloat16(), base[:, 3:].T.contiguous().T, base]
    found = cka(first, second, "triton")
    torch.testing.assert_close(found, cka(first, second, "torch"), rtol=0, atol=2e-2)
    assert found[0, 3] == 1
    for model, layer in (("a", 1), ("b", 2)):
        bad = [base.clone() for _ in range(6)]
        bad[layer + 3 * (model == "b")][4, 5] = float("nan")
        with pytest.raises(InputError, match=rf"features_{model}\[{layer}\]: NaN"):
            cka(bad[:3], bad[3:], "triton")


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", list(RTOL), ids=str)
def test_large_on_the_device(dtype: torch.dtype) -> None:
    features = [torch.randn(500, d, device="cuda").to(dtype) + 3 for d in (2048, 100_352, 777)]
    assert torch.equal(check(features, None), check(features, None))
