"""What the build promises: CUDA wherever a toolkit is found, and no driver needed to import it."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from hetmerge import _native

CHECKOUT = Path(__file__).resolve().parent.parent
NVCC = shutil.which("nvcc") or shutil.which("/usr/local/cuda/bin/nvcc")


@pytest.mark.skipif(NVCC is None, reason="no CUDA toolkit to build with")
@pytest.mark.skipif(os.environ.get("HETMERGE_CUDA") == "0", reason="HETMERGE_CUDA=0")
def test_cuda_is_built_where_a_toolkit_is_found() -> None:
    assert _native.has_cuda  # imported above: on a machine without a GPU, without a driver


def test_block_shapes_are_installed(tmp_path: Path) -> None:
    command = [sys.executable, "setup.py", "-q", "build_py", "--build-lib", str(tmp_path)]
    subprocess.run(command, cwd=CHECKOUT, capture_output=True, check=True)
    installed = {path.name for path in (tmp_path / "hetmerge/kernels/configs").iterdir()}
    assert installed == {path.name for path in (CHECKOUT / "kernels/configs").iterdir()}


def test_the_kernels_folder_refuses_another_name() -> None:
    code = "import sys; sys.path.insert(0, sys.argv[1]); import kernels"
    done = subprocess.run(
        [sys.executable, "-c", code, str(CHECKOUT)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "it is the package hetmerge.kernels" in done.stderr
