"""Shared fixtures: the data folder, and skips that name their reason."""

import os
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch.utils._device import _device_constructors

sys.path.insert(0, str(Path(__file__).parent))
import other_device  # noqa: E402

if not torch.cuda.is_available():
    # Triton kernels run in its interpreter then. Triton reads this when it is first imported, which
    # torch may do for reasons of its own.
    os.environ["TRITON_INTERPRET"] = "1"
    other_device.device()  # before the first backward pass, which starts a thread per device


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="needs a CUDA device, and torch sees none")
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(skip)


@pytest.fixture(scope="session")
def data() -> Path:
    """The data folder; a test that takes this fixture carries the marker `data`."""
    folder = os.environ.get("HETMERGE_DATA")
    if not folder:
        pytest.skip("HETMERGE_DATA does not name a data folder")
    path = Path(folder)
    assert path.is_dir(), f"HETMERGE_DATA={folder} is not a folder"
    return path


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> torch.device:
    """A device that is not the CPU: CUDA's, or where there is none that of `other_device`."""
    if torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device())
    _device_constructors()  # takes note of torch's own functions
    monkeypatch.setattr(torch, "tensor", other_device.placed(torch.tensor))
    return other_device.device()


@pytest.fixture(autouse=True)
def _single_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # tiny models: threads cost more than they save
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def _third_party_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        # torch.export and transformers warn about their own deprecations
        for module in ("torch", "transformers", "copyreg"):
            warnings.filterwarnings("ignore", module=rf"{module}(\..*)?$")
        yield
