"""Which implementation of an operation runs."""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import cache

from hetmerge.errors import BackendError

NAMES = ("reference", "torch", "native", "triton", "cuda")
VARIABLE = "HETMERGE_BACKEND"


def choose(op: str, request: str, available: Mapping[str, str | None]) -> str:
    """Name of the backend to run.

    Args:
        op: the operation, for messages.
        request: a backend's name, or "auto". "auto" takes the environment variable
            ``HETMERGE_BACKEND`` where that names a backend this operation has, else the first of
            ``available`` that can run.
        available: the operation's backends, best first, each with None if it can run here or the
            reason why it cannot.

    Raises:
        BackendError: the name is unknown, the operation has no such backend, or it cannot run.
    """
    if request == "auto":
        wanted = os.environ.get(VARIABLE, "auto")
        if wanted != "auto":
            _check_known(wanted, f"environment variable {VARIABLE}")
        if wanted not in available:
            runnable = [name for name, reason in available.items() if reason is None]
            return runnable[0] if runnable else _refuse(op, next(iter(available)), available)
        request = wanted
    else:
        _check_known(request, "backend")
        if request not in available:
            raise BackendError(
                f"backend: {op} has no {request!r} implementation, only {', '.join(available)}"
            )
    return request if available[request] is None else _refuse(op, request, available)


@cache
def native_problem() -> str | None:
    """None if the compiled extension can be imported, otherwise why not."""
    try:
        import hetmerge._native  # noqa: F401
    except ImportError as error:
        return f"the extension hetmerge._native cannot be imported ({error})"
    return None


def _check_known(name: str, argument: str) -> None:
    if name not in NAMES:
        raise BackendError(f"{argument}: {name!r} is not one of auto, {', '.join(NAMES)}")


def _refuse(op: str, name: str, available: Mapping[str, str | None]) -> str:
    raise BackendError(f"backend: {op} cannot run on {name!r}: {available[name]}")
