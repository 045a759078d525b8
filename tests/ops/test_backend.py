"""The one function that chooses a backend."""

import pytest

from hetmerge.errors import BackendError
from hetmerge.ops.backend import choose

AVAILABLE = {"cuda": "no device", "native": None, "reference": None}


@pytest.fixture(autouse=True)
def _no_preference(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HETMERGE_BACKEND", raising=False)


def test_auto_takes_the_best_that_can_run() -> None:
    assert choose("op", "auto", AVAILABLE) == "native"
    with pytest.raises(BackendError, match="op cannot run on 'cuda': no device"):
        choose("op", "auto", {"cuda": "no device"})


def test_explicit_request_runs_or_raises() -> None:
    assert choose("op", "reference", AVAILABLE) == "reference"
    with pytest.raises(BackendError, match="no device"):
        choose("op", "cuda", AVAILABLE)
    with pytest.raises(BackendError, match="op has no 'triton'"):
        choose("op", "triton", AVAILABLE)
    with pytest.raises(BackendError, match="'abacus' is not one of auto, reference"):
        choose("op", "abacus", AVAILABLE)


def test_variable_counts_where_the_operation_has_that_backend(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HETMERGE_BACKEND", "reference")
    assert choose("op", "auto", AVAILABLE) == "reference"
    assert choose("op", "native", AVAILABLE) == "native"
    monkeypatch.setenv("HETMERGE_BACKEND", "triton")
    assert choose("op", "auto", AVAILABLE) == "native"
    monkeypatch.setenv("HETMERGE_BACKEND", "cuda")
    with pytest.raises(BackendError, match="no device"):
        choose("op", "auto", AVAILABLE)
