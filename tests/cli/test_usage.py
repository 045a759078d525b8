import subprocess
import sys
from collections.abc import Callable

import hetmerge

from .conftest import Finished

Run = Callable[..., Finished]


def test_version(run: Run) -> None:
    assert run("--version").out == f"hetmerge {hetmerge.__version__}\n"


def test_wrong_usage_exits_2(run: Run) -> None:
    assert run("merge", "only-one").code == 2
    assert run("melt").code == 2


def test_every_public_name_is_there() -> None:
    for name in hetmerge._HOMES:
        assert callable(getattr(hetmerge, name)), name
    assert set(hetmerge._HOMES) <= set(dir(hetmerge))


def test_importing_the_package_does_not_load_torch() -> None:
    code = "import sys, hetmerge, hetmerge.cli; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
