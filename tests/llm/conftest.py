"""The scripts of benchmarks/llm as modules: they find each other only in their own folder."""

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

LLM = Path(__file__).parents[2] / "benchmarks" / "llm"


@pytest.fixture(scope="session")
def script() -> Callable[[str], ModuleType]:
    """Import one of them by name."""

    def load(name: str) -> ModuleType:
        sys.path.insert(0, str(LLM))
        try:
            return importlib.import_module(name)
        finally:
            sys.path.remove(str(LLM))

    return load
