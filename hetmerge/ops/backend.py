"""Which implementation of an operation runs."""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import cache
from importlib.util import find_spec

import torch

from hetmerge.errors import BackendError

NAMES = ("reference", "torch", "native", "triton", "cuda")
VARIABLE = "HETMERGE_BACKEND"
CPU_ORDER = ("native", "torch", "reference", "triton", "cuda")
GPU_ORDER = ("cuda", "triton", "torch", "native", "reference")


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


def available(device: torch.device, *names: str) -> Mapping[str, str | None]:
    """The backends ``names`` for tensors on ``device``, best first, for :func:`choose`."""
    return _available(device.type, names)


@cache
def _available(kind: str, names: tuple[str, ...]) -> Mapping[str, str | None]:
    order = GPU_ORDER if kind == "cuda" else CPU_ORDER
    return {name: _problem(name, kind) for name in order if name in names}


def _problem(name: str, kind: str) -> str | None:
    if name == "native":
        return native_problem()
    if name == "triton":
        return _triton_problem(kind)
    return _cuda_problem(kind) if name == "cuda" else None


def _triton_problem(kind: str) -> str | None:
    if find_spec("triton") is None:
        return "triton is not installed"
    if kind == "cuda" or os.environ.get("TRITON_INTERPRET") == "1":
        return None
    return f"the tensors are on {kind}; Triton needs a CUDA device, or TRITON_INTERPRET=1"


def _cuda_problem(kind: str) -> str | None:
    problem = native_problem()
    if problem is not None:
        return problem
    from hetmerge import _native

    if not _native.has_cuda:
        return "hetmerge was built without CUDA (no nvcc at build time, or HETMERGE_CUDA=0)"
    return None if kind == "cuda" else f"the tensors are on {kind}, not on a CUDA device"


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
