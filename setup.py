"""Native build and package list; everything else stands in pyproject.toml."""

from pathlib import Path

from pybind11.setup_helpers import ParallelCompile, Pybind11Extension, build_ext
from setuptools import setup

ROOT = Path(__file__).parent
PACKAGES = [
    "hetmerge",
    "hetmerge.ops",
    "hetmerge.reference",
    "hetmerge.tracing",
    "hetmerge.tracing.rules",
]

sources = sorted(str(path.relative_to(ROOT)) for path in ROOT.glob("csrc/*.cpp"))
headers = sorted(str(path.relative_to(ROOT)) for path in ROOT.glob("csrc/*.h"))
native = Pybind11Extension(
    "hetmerge._native",
    sources,
    depends=headers,
    cxx_std=17,
    extra_compile_args=["-O3", "-Wall", "-Wextra"],
)

with ParallelCompile("NPY_NUM_BUILD_JOBS", default=2):
    setup(
        packages=PACKAGES,
        ext_modules=[native] if sources else [],
        cmdclass={"build_ext": build_ext},
    )
