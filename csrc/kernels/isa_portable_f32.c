/* The kernels for portable, float32. Compiled with that instruction set's flags (setup.py's table). */
#define FSQ_ISA_PORTABLE
#define FSQ_ISA portable
#define FSQ_F32
#include "all.c"
