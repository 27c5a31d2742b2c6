/* The kernels for portable, float64. Compiled with that instruction set's flags (setup.py's table). */
#define FSQ_ISA_PORTABLE
#define FSQ_ISA portable
#define FSQ_F64
#include "all.c"
