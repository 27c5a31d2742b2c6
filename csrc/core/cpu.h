/* cpu.h - which instruction set is in use, as an index into every kernel table. */
#ifndef FSQ_CPU_H
#define FSQ_CPU_H

/* Worst first; a build for another architecture has only the portable kernels (called "neon" on arm64). */
typedef enum { FSQ_PORTABLE, FSQ_AVX2, FSQ_AVX512, FSQ_ISA_COUNT } fsq_isa;

extern fsq_isa fsq_isa_current;

#endif
