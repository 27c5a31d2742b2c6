/* The kernels for avx512, float32. Compiled with that instruction set's flags (setup.py's table). */
#define FSQ_ISA_AVX512
#define FSQ_ISA avx512
#define FSQ_F32
#include "all.c"
