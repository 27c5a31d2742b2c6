#!/bin/sh
# Builds and runs tests/c/test_threads.c in every form of the thread gateway, under every sanitizer that works:
#   plain          OpenMP with gcc, and with clang (LLVM's runtime); without OpenMP; on pthreads
#   ASan + UBSan   gcc, OpenMP (clang's finds leaks inside LLVM's own runtime)
#   TSan           the pthread form with gcc and with clang; the OpenMP form with clang and archer, which tells TSan what
#                  LLVM's runtime synchronises. TSan on libgomp, or without archer, reports only false alarms.
# Each TSan run is first shown to work: a copy of the gateway whose barrier orders nothing must be reported.
# What a missing compiler or archer prevents is said, not passed over. Usage: tests/c/run_threads.sh
set -eu
cd "$(dirname "$0")/../.."
build=$(mktemp -d)
trap 'rm -rf "$build"' EXIT
unset FASTSEQ_NUM_THREADS OMP_NUM_THREADS OMP_THREAD_LIMIT OMP_DYNAMIC OMP_WAIT_POLICY GOMP_SPINCOUNT KMP_BLOCKTIME
flags="-std=gnu11 -g -Wall -Wextra -Werror"

# run LABEL GATEWAY COMPILE...: builds the program on that gateway source and runs it
run() {
    label=$1 gateway=$2
    shift 2
    "$@" $flags tests/c/test_threads.c "$gateway" -o "$build/test_threads" -lm
    printf '%-34s' "$label"
    $fixed_addresses "$build/test_threads"
}

# sanitize_threads LABEL COMPILE...: the same, after a seeded race was found
sanitize_threads() {
    label=$1
    shift
    if (run "$label, seeded race" "$build/csrc/core/relaxed.c" "$@") >"$build/log" 2>&1 ||
        ! grep -q 'ThreadSanitizer: data race' "$build/log"; then
        echo "$label: a barrier that orders nothing was not reported: this sanitizer does not work here" >&2
        exit 1
    fi
    run "$label" csrc/core/threads.c "$@"
}

# TSan of older compilers does not cope with many bits of address randomisation
fixed_addresses="setarch $(uname -m) -R"
$fixed_addresses true 2>/dev/null || fixed_addresses=

mkdir -p "$build/csrc/core"
cp csrc/fastseq.h "$build/csrc"
cp csrc/core/*.h "$build/csrc/core"
sed -e '/^void fsq_barrier/,/^}/ s/memory_order_[a-z_]*/memory_order_relaxed/' \
    -e '/^static void wait_for_change/,/^}/ s/memory_order_[a-z_]*/memory_order_relaxed/' csrc/core/threads.c >"$build/csrc/core/relaxed.c"

gcc=${GCC:-gcc} clang=${CLANG:-clang}
run "gcc, OpenMP" csrc/core/threads.c "$gcc" -O2 -fopenmp
run "gcc, no OpenMP" csrc/core/threads.c "$gcc" -O2
run "gcc, pthreads" csrc/core/threads.c "$gcc" -O2 -DFSQ_THREADS_PTHREAD -pthread
run "gcc, OpenMP, ASan and UBSan" csrc/core/threads.c "$gcc" -O1 -fopenmp -fsanitize=address,undefined -fno-sanitize-recover=all
sanitize_threads "gcc, pthreads, TSan" "$gcc" -O1 -DFSQ_THREADS_PTHREAD -pthread -fsanitize=thread

if ! command -v "$clang" >/dev/null; then
    echo "skipped: everything with clang (not installed)"
    exit 0
fi
sanitize_threads "clang, pthreads, TSan" "$clang" -O1 -DFSQ_THREADS_PTHREAD -pthread -fsanitize=thread
if ! echo 'int main(void) { return 0; }' | "$clang" -fopenmp -x c - -o "$build/probe" 2>/dev/null; then
    echo "skipped: clang with OpenMP (libomp is not installed)"
    exit 0
fi
run "clang, OpenMP" csrc/core/threads.c "$clang" -O2 -fopenmp
archer=$(dirname "$(readlink -f "$(command -v "$clang")")")/../lib/libarcher.so
if [ ! -e "$archer" ]; then
    echo "skipped: clang, OpenMP, TSan (no libarcher.so)"
    exit 0
fi
export OMP_TOOL_LIBRARIES="$archer" TSAN_OPTIONS=ignore_noninstrumented_modules=1
sanitize_threads "clang, OpenMP, TSan with archer" "$clang" -O1 -fopenmp -fsanitize=thread
