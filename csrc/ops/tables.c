/* tables.c - which kernel tables this build has. */
#include "../kernels/kernels.h"

extern const FSQ_FN(kernels) FSQ_TABLE(portable);
#if defined __x86_64__
extern const FSQ_FN(kernels) FSQ_TABLE(avx2), FSQ_TABLE(avx512);
#endif

const FSQ_FN(kernels) *const FSQ_FN(kernels_of)[FSQ_ISA_COUNT] = {
    [FSQ_PORTABLE] = &FSQ_TABLE(portable),
#if defined __x86_64__
    [FSQ_AVX2] = &FSQ_TABLE(avx2),
    [FSQ_AVX512] = &FSQ_TABLE(avx512),
#endif
};
