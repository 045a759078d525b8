"""Native build and package list; everything else stands in pyproject.toml.

HETMERGE_CUDA=auto|0|1 decides about CUDA by the toolkit, never by a visible GPU: auto builds it
where nvcc is found and goes without, with a warning, where nvcc fails. HETMERGE_CUDA_ARCHS names
the targets (default 80;90;100), HETMERGE_SANITIZE=address|thread|undefined builds with a sanitizer.
"""

import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from pybind11.setup_helpers import ParallelCompile, Pybind11Extension, build_ext
from setuptools import setup

ROOT = Path(__file__).parent
PACKAGES = [
    "hetmerge",
    "hetmerge.kernels",
    "hetmerge.ops",
    "hetmerge.reference",
    "hetmerge.tracing",
    "hetmerge.tracing.rules",
]


def files(pattern):
    return sorted(str(path.relative_to(ROOT)) for path in ROOT.glob(pattern))


def find_toolkit():
    """Root of a CUDA toolkit. Named folders come before PATH: an nvcc there may be a wrapper."""
    places = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda"]
    on_path = shutil.which("nvcc")
    places += [Path(on_path).resolve().parents[1]] if on_path else []
    roots = [Path(place) for place in places if place]
    return next((root for root in roots if (root / "bin" / "nvcc").is_file()), None)


class Build(build_ext):
    """Adds the objects of csrc/*.cu, compiled by nvcc, to the extension."""

    def build_extension(self, extension):
        wanted = os.environ.get("HETMERGE_CUDA", "auto")
        if wanted not in ("auto", "0", "1"):
            sys.exit(f"HETMERGE_CUDA: got {wanted!r}; allowed: auto, 0, 1")
        toolkit = None if wanted == "0" else find_toolkit()
        if wanted == "1" and toolkit is None:
            sys.exit("HETMERGE_CUDA=1: no nvcc in CUDA_HOME, CUDA_PATH, /usr/local/cuda or PATH")
        if toolkit is not None and files("csrc/*.cu"):
            try:
                self.add_cuda(extension, toolkit)
            except subprocess.CalledProcessError as error:
                if wanted == "1":
                    raise
                self.warn(f"building without CUDA: nvcc failed ({error})")
        super().build_extension(extension)

    def add_cuda(self, extension, toolkit):
        archs = os.environ.get("HETMERGE_CUDA_ARCHS", "80;90;100").split(";")
        targets = [f"-gencode=arch=compute_{a},code=sm_{a}" for a in archs]
        folder = Path(self.build_temp)
        folder.mkdir(parents=True, exist_ok=True)

        def compile_one(source):
            target = folder / f"{Path(source).stem}.cu.o"
            nvcc = [str(toolkit / "bin" / "nvcc"), "-O3", "-std=c++17", "-Xcompiler", "-fPIC"]
            subprocess.run([*nvcc, *targets, "-c", source, "-o", str(target)], check=True)
            return str(target)

        with ThreadPoolExecutor(2) as pool:
            objects = list(pool.map(compile_one, files("csrc/*.cu")))
        extension.extra_objects += objects
        extension.define_macros.append(("HETMERGE_CUDA", "1"))
        libraries = next(
            d for d in ("lib64", "lib") if (toolkit / d / "libcudart_static.a").exists()
        )
        extension.library_dirs.append(str(toolkit / libraries))
        extension.libraries += ["cudart_static", "rt", "dl", "pthread"]


sanitize = os.environ.get("HETMERGE_SANITIZE")
extra = [f"-fsanitize={sanitize}", "-fno-omit-frame-pointer", "-g"] if sanitize else []
native = Pybind11Extension(
    "hetmerge._native",
    files("csrc/*.cpp"),
    depends=files("csrc/*.h") + files("csrc/*.cu"),
    cxx_std=17,
    extra_compile_args=["-O3", "-Wall", "-Wextra", "-pthread", *extra],
    extra_link_args=["-pthread", *extra],
)

with ParallelCompile("NPY_NUM_BUILD_JOBS", default=2):
    setup(
        packages=PACKAGES,
        package_dir={"hetmerge": "hetmerge", "hetmerge.kernels": "kernels"},
        ext_modules=[native],
        cmdclass={"build_ext": Build},
    )
