"""`hetmerge bench`: every operation beside its baselines, timed on this machine."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

from hetmerge.errors import InputError

FOLDER = Path(__file__).resolve().parent.parent / "benchmarks"
NEEDED = ("pytest", "pytest_benchmark", "fastcluster", "lap")


def run(only: str | None, rows: Path | None) -> int:
    """Run the benchmarks whose name contains ``only``; the exit status of pytest.

    Raises:
        InputError: the benchmarks or what they need is not there, or ``only`` names none.
    """
    found = sorted(FOLDER.glob("bench_*.py"))
    if not found:
        raise InputError(
            "bench: the benchmarks are part of the source, not of the installed package; run "
            "`hetmerge bench` from a checkout"
        )
    missing = [name for name in NEEDED if find_spec(name) is None]
    if missing:
        raise InputError(
            f"bench: {', '.join(missing)} not installed; pip install 'hetmerge[bench]'"
        )
    chosen = [path for path in found if only is None or only in path.stem]
    if not chosen:
        names = ", ".join(path.stem.removeprefix("bench_") for path in found)
        raise InputError(f"bench: no benchmark is named {only!r}; allowed: {names}")
    command = [sys.executable, "-m", "pytest", "--benchmark-only", "--timeout=0", "-q"]
    command += ["--benchmark-quiet", "--rootdir", str(FOLDER.parent)]
    command += [] if rows is None else ["--rows", str(rows.resolve())]
    # A pytest around this one speaks to its own workers through the environment.
    own = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    command += map(str, chosen)
    return subprocess.run(command, check=False, cwd=FOLDER, env=own).returncode
