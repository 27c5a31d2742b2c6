/* vec.h - one small vector vocabulary for every instruction set.
 *
 * Kernels are written once against these names. A translation unit defines FSQ_F32 or FSQ_F64 and one of
 * FSQ_ISA_PORTABLE, FSQ_ISA_AVX2, FSQ_ISA_AVX512 (kernels/isa_*.c) and gets
 *
 *   real            float or double
 *   vreal, vint     VL lanes of real, and of a signed integer of the same width
 *   vmask           the result of a comparison
 *
 *   load and store  vload vstore (no alignment needed), vload_n vstore_n (the first n lanes, 0 <= n <= VL; the others
 *                   read as zero and are not written), vset1 vzero
 *   arithmetic      vadd vsub vmul vdiv vsqrt vneg vabs; vfma(a, b, c) = a b + c, vfnma(a, b, c) = c - a b, both with one
 *                   rounding where FSQ_HAS_FMA is 1 and with two where it is 0; where FSQ_HAS_RECIPROCAL is 1,
 *                   vreciprocal(a) is near 1 / a for 1 <= a < 2^126 (2^1022): half the bits or a few less, for Newton's step
 *   vmin, vmax      a < b ? a : b and a > b ? a : b: a NaN in either operand gives b
 *   comparisons     vlt vle vgt vge veq (false on NaN), visnan; vand_m vor_m vany; vselect(m, a, b) = m ? a : b
 *   integers        vbits and vfrombits reinterpret; vi_add vi_sub vi_and vi_or vi_xor vi_set1, vi_shl vi_shr (logical)
 *   across lanes    vsum, vmaximum: in a fixed order of lanes; vtranspose turns VL vectors as a square matrix;
 *                   vload_turned(r, row, k) is vload(row[i] + k) for every i, then vtranspose, with fewer shuffles
 *
 * Only static inline functions: a header that several instruction sets share must not leave a symbol behind.
 */
#ifndef FSQ_VEC_H
#define FSQ_VEC_H

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "../core/real.h"

#define FSQ_INLINE static inline __attribute__((always_inline, unused))

#if defined FSQ_ISA_AVX512
#include "vec_avx512.h"
#elif defined FSQ_ISA_AVX2
#include "vec_avx2.h"
#elif defined FSQ_ISA_PORTABLE
#include "vec_portable.h"
#else
#error "define one of FSQ_ISA_PORTABLE, FSQ_ISA_AVX2, FSQ_ISA_AVX512"
#endif

#endif
