/* denormals.h - flush denormals to zero in the calling thread, and restore. A recurrent state that decays through the
 * denormal range would otherwise cost an Intel core about 150 cycles per operation. */
#ifndef FSQ_DENORMALS_H
#define FSQ_DENORMALS_H

#if defined __x86_64__
#include <xmmintrin.h>
typedef unsigned fsq_fp_state;
static inline fsq_fp_state fsq_flush_denormals(void) {
    unsigned before = _mm_getcsr();
    _mm_setcsr(before | 0x8040); /* FTZ and DAZ */
    return before;
}
static inline void fsq_restore_denormals(fsq_fp_state before) { _mm_setcsr(before); }
#elif defined __aarch64__
#include <stdint.h>
typedef uint64_t fsq_fp_state;
static inline fsq_fp_state fsq_flush_denormals(void) {
    uint64_t before;
    __asm__ volatile("mrs %0, fpcr" : "=r"(before));
    __asm__ volatile("msr fpcr, %0" : : "r"(before | (UINT64_C(1) << 24))); /* FZ */
    return before;
}
static inline void fsq_restore_denormals(fsq_fp_state before) { __asm__ volatile("msr fpcr, %0" : : "r"(before)); }
#else
typedef int fsq_fp_state;
static inline fsq_fp_state fsq_flush_denormals(void) { return 0; }
static inline void fsq_restore_denormals(fsq_fp_state before) { (void)before; }
#endif

#endif
