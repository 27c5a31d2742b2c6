/* The kernels for avx2, float64. Compiled with that instruction set's flags (setup.py's table). */
#define FSQ_ISA_AVX2
#define FSQ_ISA avx2
#define FSQ_F64
#include "all.c"
