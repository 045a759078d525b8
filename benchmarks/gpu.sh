#!/usr/bin/env bash
# Build, test and measure on a machine with a GPU and without network, in under 8 minutes:
#   benchmarks/gpu.sh OUTDIR
# OUTDIR gets <device>.csv, roofline.png, configs/ and the log of each stage. Nothing is installed:
# the build goes to a temporary folder. PYTHON names the interpreter (default python3); it needs
# torch, triton, numpy, scipy, pybind11, setuptools, pytest, hypothesis, matplotlib, safetensors, rich,
# scikit-learn, pyyaml and transformers.
# The exit status is 0 only if every stage succeeded; a failing one does not stop those after it.
set -uo pipefail

if [[ $# -ne 1 ]]; then
    echo "usage: benchmarks/gpu.sh OUTDIR" >&2
    exit 2
fi
mkdir -p "$1" || exit 2
out="$(cd "$1" && pwd)"
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 2
python="${PYTHON:-python3}"
site="$(mktemp -d)"
trap 'rm -rf "$site"' EXIT
# The checkout itself must not shadow the build: it has neither the extension nor the kernels.
export PYTHONSAFEPATH=1 PYTHONUNBUFFERED=1 PYTHONPATH="$site${PYTHONPATH:+:$PYTHONPATH}"
failed=()

stage() { # name, seconds, command...
    local name="$1" seconds="$2" began=$SECONDS status
    shift 2
    echo "== $name"
    timeout --kill-after=5 "$seconds" "$@" 2>&1 | tee "$out/$name.log"
    status=${PIPESTATUS[0]}
    [[ $status -eq 124 || $status -eq 137 ]] && echo "stopped after $seconds s" | tee -a "$out/$name.log"
    echo "== $name: status $status, $((SECONDS - began)) s"
    [[ $status -eq 0 ]] || failed+=("$name")
}

# One architecture is built: that of the GPU here.
found="$("$python" -c 'import torch; print("%d%d" % torch.cuda.get_device_capability())' 2>/dev/null)"
export HETMERGE_CUDA_ARCHS="${HETMERGE_CUDA_ARCHS:-${found:-90}}"

stage build 60 "$python" -m pip install --quiet --no-index --no-build-isolation --no-deps \
    --disable-pip-version-check --target "$site" .
stage test 110 "$python" -m pytest tests/ops tests/kernels -m gpu -q -rs \
    -o addopts=--import-mode=importlib -W ignore::pytest.PytestConfigWarning
# Merges of small networks here and on the CPU.
stage merges 75 "$python" -m pytest tests/disk/test_device.py tests/merging/test_device.py -q -rs \
    -o addopts=--import-mode=importlib -W ignore::pytest.PytestConfigWarning
stage sweep 220 "$python" benchmarks/gpu_sweep.py "$out" --seconds 195

if [[ ${#failed[@]} -gt 0 ]]; then
    echo "gpu.sh: failed: ${failed[*]}" >&2
    exit 1
fi
