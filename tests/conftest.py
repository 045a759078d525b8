"""Shared fixtures: the data folder, and skips that name their reason."""

import os
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

if not torch.cuda.is_available():
    # Triton kernels run in its interpreter then. Triton reads this when it is first imported, which
    # torch may do for reasons of its own.
    os.environ["TRITON_INTERPRET"] = "1"


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
