"""Makes the zoo of models importable and silences warnings of third parties."""

import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # `zoo` is a package beside these tests


@pytest.fixture(autouse=True)
def _third_party_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        # torch.export and transformers warn about their own deprecations
        for module in ("torch", "transformers", "copyreg"):
            warnings.filterwarnings("ignore", module=rf"{module}(\..*)?$")
        yield
