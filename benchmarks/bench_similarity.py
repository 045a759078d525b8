"""CKA of all layer pairs against one HSIC per pair."""

import pytest
import torch

from hetmerge.ops import cka


@pytest.mark.parametrize("backend", ["torch", "reference"])
@pytest.mark.parametrize("layers", [6, 12])
def test_cka(measure, layers, backend):
    rng = torch.Generator().manual_seed(0)
    features_a = [torch.randn(256, 512, generator=rng) for _ in range(layers)]
    features_b = [torch.randn(256, 512, generator=rng) for _ in range(layers)]
    expected = cka(features_a, features_b, backend="reference")
    torch.testing.assert_close(cka(features_a, features_b), expected, rtol=1e-8, atol=1e-9)
    measure(lambda: cka(features_a, features_b, backend=backend), f"cka {layers} layers")
