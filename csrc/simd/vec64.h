/* vec64.h - whole registers of unsigned 64-bit integers, for Philox and fingerprints, whatever the float type.
 *
 *   v64, VL64         a register and its number of lanes; + ^ | & << >> work lane by lane, modulo 2^64
 *   v64_load v64_store v64_set1
 *   v64_mul32(a, b)   the 64-bit product of the low halves of each lane; the high halves are not looked at
 */
#ifndef FSQ_VEC64_H
#define FSQ_VEC64_H

#include "vec.h"

#if defined FSQ_ISA_AVX512
#define VL64 8
#elif defined FSQ_ISA_AVX2
#define VL64 4
#else
#define VL64 2
#if defined __x86_64__
#include <emmintrin.h>
#endif
#endif
typedef uint64_t v64 __attribute__((vector_size(8 * VL64)));

FSQ_INLINE v64 v64_load(const void *p) { v64 a; memcpy(&a, p, sizeof a); return a; }
FSQ_INLINE void v64_store(void *p, v64 a) { memcpy(p, &a, sizeof a); }
FSQ_INLINE v64 v64_set1(uint64_t x) { return (v64){0} + x; }

#if defined FSQ_ISA_AVX512
FSQ_INLINE v64 v64_mul32(v64 a, v64 b) { return (v64)_mm512_mul_epu32((__m512i)a, (__m512i)b); }
#elif defined FSQ_ISA_AVX2
FSQ_INLINE v64 v64_mul32(v64 a, v64 b) { return (v64)_mm256_mul_epu32((__m256i)a, (__m256i)b); }
#elif defined __x86_64__
FSQ_INLINE v64 v64_mul32(v64 a, v64 b) { return (v64)_mm_mul_epu32((__m128i)a, (__m128i)b); }
#elif defined __aarch64__
FSQ_INLINE v64 v64_mul32(v64 a, v64 b) { return (v64)vmull_u32(vmovn_u64((uint64x2_t)a), vmovn_u64((uint64x2_t)b)); }
#else
FSQ_INLINE v64 v64_mul32(v64 a, v64 b) { return (a & 0xffffffff) * (b & 0xffffffff); }
#endif

#endif
