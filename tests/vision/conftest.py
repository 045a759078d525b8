"""The scripts of benchmarks/vision as modules: they find each other only in their own folder."""

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

VISION = Path(__file__).parents[2] / "benchmarks" / "vision"


@pytest.fixture(scope="session")
def script() -> Callable[[str], ModuleType]:
    """Import one of them by name."""

    def load(name: str) -> ModuleType:
        sys.path.insert(0, str(VISION))
        try:
            return importlib.import_module(name)
        finally:
            sys.path.remove(str(VISION))

    return load
