#!/usr/bin/env bash
# The native code under AddressSanitizer and UndefinedBehaviorSanitizer, then ThreadSanitizer.
# `make sanitize` runs it; it needs the environment of `make check` and g++.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=.venv/bin/python
runtime() { "${CXX:-g++}" -print-file-name="$1"; }

build() { # kinds
    rm -rf "build/sanitize-$1"
    HETMERGE_SANITIZE="$1" HETMERGE_CUDA=0 "$python" setup.py -q build \
        --build-base "build/objects-$1" --build-lib "build/sanitize-$1"
}

run() { # kinds, library, tests...
    local kinds="$1" library="$2"
    shift 2
    echo "== $kinds"
    sanitized "$kinds" "$library" -c "import hetmerge._native as n; assert '$kinds' in n.__file__"
    sanitized "$kinds" "$library" .venv/bin/pytest -q -p no:cacheprovider --benchmark-disable "$@"
}

sanitized() { # kinds, library, arguments of python...
    local kinds="$1" library="$2"
    shift 2
    LD_PRELOAD="$(runtime "$library") $(runtime libstdc++.so)" \
        PYTHONPATH="$PWD/build/sanitize-$kinds" PYTHONSAFEPATH=1 setarch -R "$python" "$@"
}

build address,undefined
ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1 \
    run address,undefined libasan.so tests/ops
# Only what uses threads: every access is checked, which is slow. torch's own threads are not
# instrumented, so what they do is ignored.
build thread
TSAN_OPTIONS=halt_on_error=1:ignore_noninstrumented_modules=1 \
    run thread libtsan.so tests/ops -k threads
