"""Families of small networks and their inputs."""

import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parent))  # `families` is a package beside these tests
os.environ.setdefault("HF_HUB_OFFLINE", "1")

from families.vision import randomise  # noqa: E402

Make = Callable[..., nn.Module]


@pytest.fixture
def make() -> Make:
    """make(family, *arguments, seed=, dtype=): a network in eval mode with norms as if trained."""

    def build(family: Make, *args: object, seed: int = 0, dtype=torch.float64, **kwargs: object):
        torch.manual_seed(seed)
        model = family(*args, **kwargs)
        with torch.no_grad():
            return randomise(model, seed).to(dtype)

    return build


def noise(*shape: int, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """Three batches of sixteen inputs."""
    random = torch.Generator().manual_seed(9)
    return list(torch.randn(48, *shape, generator=random, dtype=dtype).split(16))


@pytest.fixture
def images() -> list[Tensor]:
    return noise(3, 8, 8)


@pytest.fixture
def vectors() -> list[Tensor]:
    return noise(6)


@pytest.fixture
def sequences() -> list[Tensor]:
    return noise(4, 6)


@pytest.fixture
def tokens() -> list[Tensor]:
    random = torch.Generator().manual_seed(9)
    return list(torch.randint(0, 40, (48, 8), generator=random).split(16))
