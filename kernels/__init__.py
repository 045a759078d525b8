"""Triton kernels, imported as ``hetmerge.kernels``."""

if __name__ != "hetmerge.kernels":
    raise ImportError(
        f"this folder was imported as {__name__!r}, but it is the package hetmerge.kernels: "
        "import that, or take hetmerge's checkout off sys.path"
    )
