/* cpu.c - which instruction sets this machine can run, and the one in use.
 *
 * A processor that has wide registers is not enough: the operating system must save them at a context switch, or another process
 * overwrites them. CPUID says what the processor has, XGETBV what the operating system saves (Intel SDM volume 1, sections 14.3
 * and 15.2). */
#include "cpu.h"

#include <string.h>

#include "../fastseq.h"

fsq_isa fsq_isa_current = FSQ_PORTABLE;

/* The one list of instruction sets, by fsq_isa. Each includes those before it: what a machine can run is the list up to its best. */
static const char *const names[FSQ_ISA_COUNT] = {
#if defined __aarch64__
    [FSQ_PORTABLE] = "neon",
#else
    [FSQ_PORTABLE] = "portable",
#endif
    [FSQ_AVX2] = "avx2",
    [FSQ_AVX512] = "avx512",
};

#if defined __x86_64__
#include <cpuid.h>

#define CPUID1_ECX_AVX2 (bit_FMA | bit_OSXSAVE | bit_AVX)
#define CPUID7_EBX_AVX512 (bit_AVX512F | bit_AVX512DQ | bit_AVX512BW | bit_AVX512VL)
#define XCR0_YMM 0x06u /* XMM and the upper halves of YMM */
#define XCR0_ZMM 0xe6u /* those, the mask registers, the upper halves of ZMM, and ZMM16-31 */

static int has(unsigned value, unsigned bits) { return (value & bits) == bits; }

/* Written out because the compiler's own intrinsic needs -mxsave. Faults unless CPUID says OSXSAVE. */
static unsigned saved_registers(void) {
    unsigned low, high;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return low;
}

static fsq_isa best(void) {
    unsigned eax, ebx, ecx, edx;
    if (!__get_cpuid(1, &eax, &ebx, &ecx, &edx) || !has(ecx, CPUID1_ECX_AVX2)) return FSQ_PORTABLE;
    unsigned saved = saved_registers();
    if (!__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) || !has(ebx, bit_AVX2) || !has(saved, XCR0_YMM)) return FSQ_PORTABLE;
    return has(ebx, CPUID7_EBX_AVX512) && has(saved, XCR0_ZMM) ? FSQ_AVX512 : FSQ_AVX2;
}
#else
static fsq_isa best(void) { return FSQ_PORTABLE; }
#endif

const char *fsq_isa_name(void) { return names[fsq_isa_current]; }

const char *fsq_isa_available(int i) { return i >= 0 && i <= (int)best() ? names[i] : NULL; }

int fsq_isa_select(const char *name) {
    fsq_isa limit = best();
    if (!name) {
        fsq_isa_current = limit;
        return 0;
    }
    for (int i = 0; i <= (int)limit; i++) {
        if (strcmp(name, names[i]) == 0) {
            fsq_isa_current = (fsq_isa)i;
            return 0;
        }
    }
    return -1;
}
