#!/usr/bin/env bash
# Everything that .ci/run is too short for, before an issue is called done: tests/full.sh [STEP ...]; no step: all of them.
# Hours on two cores, and several GB of downloads. It prints the date and the commit that CHANGELOG.md then names.
#   PYTHON=python3.12  another interpreter
set -euo pipefail
cd "$(dirname "$0")/.."
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python=${PYTHON:-python3}
steps=${*:-suite cuda vmath sanitizers threads clang arm fuzz torch benchmarks docs ci}
unset FASTSEQ_ISA FASTSEQ_NUM_THREADS FASTSEQ_NO_OPENMP PYTHONPATH VIRTUAL_ENV

# What cannot run here is said at the end, not passed over.
have() { command -v "$1" >/dev/null || { echo "skipped: $step, $1 is not installed" >>"$work/skipped"; return 1; }; }

environment() { # a fresh virtual environment with the tree built in place, by the compiler in CC
    [ ! -d "$work/$1" ] || return 0
    "$python" -m venv "$work/$1"
    "$work/$1/bin/pip" install --quiet "$(copy "$1")[test,bench]"
}
copy() { # a copy of the tree, so that builds do not meet
    mkdir -p "$work/tree-$1"
    git ls-files -z --cached --others --exclude-standard | xargs -0 sh -c 'for f; do [ ! -e "$f" ] || printf "%s\0" "$f"; done' sh |
        tar --null -T - -cf - | tar -xf - -C "$work/tree-$1"
    echo "$work/tree-$1"
}
away() { # the tests without the package's sources, so that the installed one is tested
    mkdir -p "$work/away"
    cp -r tests benchmarks pyproject.toml "$work/away"
    cd "$work/away"
}

suite() { # every instruction set, by its environment variable too, and thread counts above the cores
    environment gcc
    away
    for isa in $("$work/gcc/bin/python" -c 'import fastseq as fs; print(*fs.runtime.config()["isas_available"])'); do
        for threads in 1 2 5; do
            FASTSEQ_ISA=$isa FASTSEQ_NUM_THREADS=$threads "$work/gcc/bin/python" -m pytest -q tests --ignore=tests/cuda
        done
    done
}

cuda() { # the CUDA kernels in the emulator: threads in either order, a search for races, and for accesses outside of arrays
    environment gcc
    away
    for order in forward backward; do
        FASTSEQ_EMULATOR_ORDER=$order "$work/gcc/bin/python" -m pytest -q tests/cuda
    done
    FASTSEQ_CUDA_RACES=1 "$work/gcc/bin/python" -m pytest -q tests/cuda
    FASTSEQ_CUDA_ASAN=1 LD_PRELOAD=$(gcc -print-file-name=libasan.so) ASAN_OPTIONS=detect_leaks=0:detect_stack_use_after_return=0:halt_on_error=0 \
        "$work/gcc/bin/python" -m pytest -q tests/cuda --ignore=tests/cuda/test_nvrtc.py
}

vmath() { # all 2^32 floats
    sh tests/c/build.sh "$work/c" vmath_exhaustive
    "$work/c/vmath_exhaustive"
}

sanitizers() { # the kernels' own test program, at -O1 so that the tool sees every access
    sh tests/c/build.sh "$work/c"
    "$work/c/test_kernels"
    EXTRA="-fsanitize=address,undefined -fno-sanitize-recover=all" CFLAGS="-O1 -g" sh tests/c/build.sh "$work/asan"
    "$work/asan/test_kernels"
    # gcc's OpenMP is invisible to ThreadSanitizer: the gateway on plain pthreads
    OPENMP="-DFSQ_THREADS_PTHREAD -pthread" EXTRA=-fsanitize=thread CFLAGS="-O1 -g" sh tests/c/build.sh "$work/tsan"
    setarch "$(uname -m)" -R "$work/tsan/test_kernels"
}

threads() { sh tests/c/run_threads.sh; }

clang() { # the whole suite again with the other compiler
    have clang || return 0
    CC=clang environment clang
    away
    "$work/clang/bin/python" -m pytest -q tests
}

arm() { # the portable kernels for arm64: they compile; and run, where there is an emulator
    have aarch64-linux-gnu-gcc || return 0
    CC=aarch64-linux-gnu-gcc EXTRA=-static sh tests/c/build.sh "$work/arm"
    have qemu-aarch64 || return 0
    qemu-aarch64 "$work/arm/test_kernels"
}

fuzz() { # property tests at length
    environment gcc
    away
    HYPOTHESIS_PROFILE=long "$work/gcc/bin/python" -m pytest -q -m hypothesis tests
}

torch() {
    environment gcc
    "$work/gcc/bin/pip" install --quiet torch==2.13.0
    away
    "$work/gcc/bin/python" -m pytest -q tests -k torch
}

benchmarks() { # every answer verified, nothing timed
    environment gcc
    away
    "$work/gcc/bin/python" -m pytest -q benchmarks --benchmark-disable
}

docs() { # every block of code in the pages, and every docstring's example
    tree=$(copy docs)
    "$python" -m venv "$work/docs"
    "$work/docs/bin/pip" install --quiet -e "${tree}[test]"
    cd "$tree"
    "$work/docs/bin/python" -m pytest -q fastseq tests/test_docs.py
}

ci() { PYTHON=$python .ci/run; }

for step in $steps; do
    printf '\n[%3d min] %s\n' $((SECONDS / 60)) "$step"
    ("$step") || { echo "full.sh: $step failed" >&2; exit 1; }
done
[ ! -e "$work/skipped" ] || cat "$work/skipped"
echo "tests/full.sh passed: $steps"
echo "$(date -u +%Y-%m-%d) commit $(git rev-parse --short HEAD)$(git diff --quiet HEAD || echo ' with changes'), $("$python" --version), $(gcc --version | head -1)"
