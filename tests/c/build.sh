#!/bin/sh
# Builds the C tests without Python: tests/c/build.sh [OUTPUT_DIRECTORY] [PROGRAM ...]; programs: test_kernels vmath_exhaustive (default: test_kernels).
#   CC=gcc           compiler; a cross compiler such as aarch64-linux-gnu-gcc builds the portable kernels only
#   CFLAGS=-O3       optimisation
#   EXTRA=           what else goes to compiler and linker: -fsanitize=address,undefined, for example
#   JOBS=2           compilers at once
#   OPENMP=-fopenmp  empty: without OpenMP. ThreadSanitizer: OPENMP=-DFSQ_THREADS_PTHREAD EXTRA=-fsanitize=thread
set -eu
here=$(cd "$(dirname "$0")" && pwd)
csrc=$here/../../csrc
out=${1:-$here/build}
[ $# -gt 0 ] && shift
[ $# -gt 0 ] || set -- test_kernels
CC=${CC:-gcc}
CFLAGS=${CFLAGS:--O3 -g}
EXTRA=${EXTRA:-}
OPENMP=${OPENMP--fopenmp}
JOBS=${JOBS:-2}
flags="-std=gnu11 $CFLAGS -fno-math-errno -fno-trapping-math -ffp-contract=off -Wall -Wextra -Werror $EXTRA -I$csrc"
mkdir -p "$out"

isas=portable
case $("$CC" -dumpmachine) in x86_64*) isas="portable avx2 avx512" ;; esac
objects=
running=
finish() { # waits for the compilers; fails if one did
    for process in $running; do wait "$process"; done
    running=
}
compile() { # object source flags...
    object=$out/$1.o source=$2
    shift 2
    objects="$objects $object"
    # shellcheck disable=SC2086 # flags are words
    "$CC" $flags "$@" -c "$source" -o "$object" &
    running="$running $!"
    # shellcheck disable=SC2086
    set -- $running
    [ $# -lt "$JOBS" ] || finish
}
for isa in $isas; do
    case $isa in
        avx2) wide="-mavx2 -mfma" ;;
        avx512) wide="-mavx512f -mavx512bw -mavx512vl -mavx512dq -mfma" ;;
        *) wide= ;;
    esac
    for real in f32 f64; do
        # shellcheck disable=SC2086
        compile "kernels_${isa}_$real" "$csrc/kernels/isa_${isa}_$real.c" $wide
    done
done
for real in f32 f64; do compile "ops_$real" "$csrc/ops/ops_$real.c"; done
# shellcheck disable=SC2086
for source in "$csrc"/core/*.c; do compile "core_$(basename "$source" .c)" "$source" $OPENMP; done
library=$objects

for program in "$@"; do
    objects=
    if [ "$program" = test_kernels ]; then
        for name in test_ops test_optim test_matmul test_attention test_attention_decoder test_conv test_recurrent; do
            compile "${name}_f32" "$here/$name.c" -DFSQ_F32
            compile "${name}_f64" "$here/$name.c" -DFSQ_F64
        done
        compile test_core "$here/test_core.c"
    fi
    compile "$program" "$here/$program.c"
    finish
    # shellcheck disable=SC2086
    "$CC" $CFLAGS $EXTRA $OPENMP $objects $library -o "$out/$program" -pthread -lm
done
