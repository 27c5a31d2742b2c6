/* vmath.h - exp, log, tanh and sigmoid on the vectors of vec.h.
 *
 * For every function: the range, the greatest error in ulp (units of the exact result's last place, a denormal's as it stands), and
 * what comes at +-0, +-infinity and NaN. The tests assert these numbers: float32 over all 2^32 inputs (tests/c/vmath_exhaustive.c),
 * float64 against mpmath (tests/test_vmath.py). Denormals are right as inputs and as results unless the caller has them flushed.
 * A lane does not depend on the others, and no value takes a slower way but where the processor itself is slow with denormals.
 *
 * The method: exp(x) = 2^n exp(r), n = x / ln 2 rounded, |r| <= ln(2) / 2, exp(r) = 1 + r + r^2/2 + r^3 P(r).
 * tanh(x) = u / (u + 2) with u = exp(2|x|) - 1 out of the same pieces, so that nothing cancels near 0.
 * log(x) = k ln 2 + log(1 + f), 1 + f in [sqrt(1/2), sqrt(2)), log(1 + f) = f - f^2/2 + s (f^2/2 + s^2 R(s^2)), s = f / (2 + f)
 * (the form of Sun's fdlibm). P and R are minimax polynomials from a Remez exchange in 50-digit arithmetic, P for the least
 * |r^3 (P - exact)|, R for the least |s^2 (R - exact)|: tests/c/vmath_derive.py prints them. In float32 P is off by 2^-28.2 and
 * s^2 R by 2^-29.2, in float64 by 2^-57.3 and 2^-58.5. AVX-512 has tables in registers: vmath_avx512.h. */
#ifndef FSQ_VMATH_H
#define FSQ_VMATH_H

#include "vec.h"

#if defined FSQ_F32
enum { vmath_mantissa = 23, vmath_bias = 127, vmath_raise = 24, vmath_lift = 64 };
#define VMATH_MAGIC 0x1.8p23f                               /* adding it rounds to an integer, which stands in the low bits */
#define VMATH_LOG2E 0x1.715476p+0f
#define VMATH_LN2 0x1.62e43p-1f
#define VMATH_LN2_HI 0x1.63p-1f                             /* 9 bits: times any n it is exact */
#define VMATH_LN2_LO -0x1.bd0106p-13f
#define VMATH_EXP_MIN -104.0f                               /* below the logarithm of half the least denormal */
#define VMATH_EXP_MAX 89.0f                                 /* above the logarithm of the greatest float */
#define VMATH_TANH_ONE 9.02f                                /* from here on tanh rounds to 1 */
#define VMATH_SQRT_HALF 0x1.6a09e6p-1f
#define VMATH_LEAST_NORMAL 0x1p-126f
#define VMATH_TWO_RAISE 0x1p24f
#define VMATH_TWO_MINUS_LIFT 0x1p-64f
#else
enum { vmath_mantissa = 52, vmath_bias = 1023, vmath_raise = 54, vmath_lift = 512 };
#define VMATH_MAGIC 0x1.8p52
#define VMATH_LOG2E 0x1.71547652b82fep+0
#define VMATH_LN2 0x1.62e42fefa39efp-1
#define VMATH_LN2_HI 0x1.62e42fefa3p-1                      /* 41 bits: times any n it is exact */
#define VMATH_LN2_LO 0x1.3de6af278ece6p-42
#define VMATH_EXP_MIN -746.0
#define VMATH_EXP_MAX 710.0
#define VMATH_TANH_ONE 19.1
#define VMATH_SQRT_HALF 0x1.6a09e667f3bcdp-1
#define VMATH_LEAST_NORMAL 0x1p-1022
#define VMATH_TWO_RAISE 0x1p54
#define VMATH_TWO_MINUS_LIFT 0x1p-512
#endif

/* exp(r) - 1 for |r| <= ln(2) / 2. */
FSQ_INLINE vreal vmath_expm1_near(vreal r) {
    vreal r2 = vmul(r, r);
#if defined FSQ_F32
    vreal low = vfma(r, vset1(0.166665203f), vset1(0.5f));
    vreal high = vfma(r2, vset1(0.00139420081f), vfma(r, vset1(0.0083687593f), vset1(0.041666387f)));
    vreal p = vfma(r2, high, low);
#else
    vreal r4 = vmul(r2, r2);
    vreal p01 = vfma(r, vset1(0.166666666666666864), vset1(0.5));
    vreal p23 = vfma(r, vset1(0.00833333333331392675), vset1(0.0416666666666026421));
    vreal p45 = vfma(r, vset1(0.000198412699049114776), vset1(0.00138888889273360469));
    vreal p67 = vfma(r, vset1(2.75572260775712449e-6), vset1(0.0000248015079997775934));
    vreal p89 = vfma(r, vset1(2.51150967456882047e-8), vset1(2.76254590547319887e-7));
    vreal p = vfma(r4, vfma(r4, p89, vfma(r2, p67, p45)), vfma(r2, p23, p01));
#endif
    return vfma(r2, p, r);
}

#if defined FSQ_ISA_AVX512 && defined FSQ_F32
#include "vmath_avx512.h"
#else

/* exp(r) - 1 of x = n ln 2 + r; n + `offset` stands in the low bits of t. */
FSQ_INLINE vreal vmath_exp_reduced(vreal x, vreal *t, int offset) {
    vreal magic = vset1(VMATH_MAGIC + (real)offset);
    *t = vfma(x, vset1(VMATH_LOG2E), magic);
    vreal n = vsub(*t, magic);
    return vmath_expm1_near(vfnma(n, vset1(VMATH_LN2_LO), vfnma(n, vset1(VMATH_LN2_HI), x)));
}

/* exp of x in [VMATH_EXP_MIN, VMATH_EXP_MAX] or NaN. 2^n is applied in two factors, so that infinity and denormals come out of the
 * second multiplication, rounded once. */
FSQ_INLINE vreal vmath_exp(vreal x) {
    vreal t, u = vmath_exp_reduced(x, &t, 2 * vmath_bias);
    vint n2 = vi_sub(vbits(t), vbits(vset1(VMATH_MAGIC))), half = vi_shr(n2, 1);
    vreal first = vfrombits(vi_shl(half, vmath_mantissa)), second = vfrombits(vi_shl(vi_sub(n2, half), vmath_mantissa));
    return vmul(vfma(first, u, first), second);
}

/* exp of x in [VMATH_EXP_MIN, 0] or NaN: 2^(n + lift) (1 + u) is a normal number, and one multiplication takes the lift away. */
FSQ_INLINE vreal vmath_exp_down(vreal x) {
    vreal t, u = vmath_exp_reduced(x, &t, vmath_lift);
    vreal power = vfrombits(vi_add(vi_shl(vbits(t), vmath_mantissa), vbits(vset1(1))));
    return vmul(vfma(power, u, power), vset1(VMATH_TWO_MINUS_LIFT));
}

/* tanh
 * range: all; 1 from 9.02 (float64: 19.1) on
 * ulp: float32 3 with FMA, 4 without; float64 4
 * +-0 -> +-0, +-inf -> +-1, NaN -> NaN */
FSQ_INLINE vreal vtanh(vreal x) {
    vreal a = vmin(vset1(VMATH_TANH_ONE), vabs(x));
    vreal t = vfma(a, vset1(2 * VMATH_LOG2E), vset1(VMATH_MAGIC));
    vreal n = vsub(t, vset1(VMATH_MAGIC)), twice = vadd(a, a);
#if FSQ_HAS_FMA
    vreal r = vfnma(n, vset1(VMATH_LN2), twice);            /* n ln 2 is off by 2^-29 n: where n > 0, exp(2a) counts for ever less */
#else
    vreal r = vfnma(n, vset1(VMATH_LN2_LO), vfnma(n, vset1(VMATH_LN2_HI), twice));
#endif
    vreal u = vmath_expm1_near(r), half = vset1((real)0.5);
    vreal power = vfrombits(vi_add(vi_shl(vbits(t), vmath_mantissa), vbits(half)));               /* 2^n / 2 */
    vreal above = vfma(power, u, vsub(power, half)), below = vfma(power, u, vadd(power, half));     /* (exp(2a) -+ 1) / 2 */
    return vfrombits(vi_or(vbits(vdiv(above, below)), vi_and(vbits(x), vbits(vset1((real)-0.0)))));
}

#endif

/* exp
 * range: all; infinity above log(greatest), gradual underflow below log(least normal)
 * ulp: float32 2 with FMA and without; float64 2
 * +-0 -> 1, inf -> inf, -inf -> 0, NaN -> NaN */
FSQ_INLINE vreal vexp(vreal x) {
    return vmath_exp(vmin(vset1(VMATH_EXP_MAX), vmax(vset1(VMATH_EXP_MIN), x)));    /* in this order of operands a NaN passes */
}

/* exp for x <= 0: like vexp there, and cheaper; undefined for x > 0. */
FSQ_INLINE vreal vexp_down(vreal x) { return vmath_exp_down(vmax(vset1(VMATH_EXP_MIN), x)); }

/* sigmoid
 * range: all; gradual underflow below -log(1 / least normal)
 * ulp: float32 3 with FMA, 4 without; float64 4
 * +-0 -> 0.5, inf -> 1, -inf -> 0, NaN -> NaN */
FSQ_INLINE vreal vsigmoid(vreal x) {
    vreal e = vexp_down(vfrombits(vi_or(vbits(x), vbits(vset1((real)-0.0)))));                      /* exp(-|x|) */
    return vdiv(vselect(vlt(x, vzero()), e, vset1(1)), vadd(vset1(1), e));
}

/* s^2 R(s^2) / s^2 of the logarithm, for 0 <= s2 <= 0.0295. */
FSQ_INLINE vreal vmath_log_series(vreal s2) {
#if defined FSQ_F32
    return vfma(s2, vfma(s2, vset1(0.2987242f), vset1(0.399775177f)), vset1(0.666667766f));
#else
    vreal s4 = vmul(s2, s2);
    vreal odd = vfma(s4, vfma(s4, vset1(0.153139770090670672), vset1(0.222221985247065192)), vset1(0.399999999994128952));
    vreal even = vfma(s4, vfma(s4, vset1(0.147967278952987247), vset1(0.181835670276777805)), vset1(0.285714287428236846));
    return vfma(s2, odd, vfma(s4, even, vset1(0.666666666666673465)));
#endif
}

/* log
 * range: all; NaN below 0
 * ulp: float32 2 with FMA and without; float64 2
 * +-0 -> -inf, inf -> inf, -inf -> NaN, NaN -> NaN */
FSQ_INLINE vreal vlog(vreal x) {
    vmask denormal = vlt(x, vset1(VMATH_LEAST_NORMAL));
    vreal z = vselect(denormal, vmul(x, vset1(VMATH_TWO_RAISE)), x);
    vint one = vbits(vset1(1)), magic = vbits(vset1(VMATH_MAGIC));
    vint k = vi_shr(vi_add(vi_sub(vbits(z), vbits(vset1(VMATH_SQRT_HALF))), one), vmath_mantissa);  /* and the bias of exponents */
    vreal f = vsub(vfrombits(vi_add(vi_sub(vbits(z), vi_shl(k, vmath_mantissa)), one)), vset1(1));
    vreal no_k = vselect(denormal, vset1(VMATH_MAGIC + vmath_bias + vmath_raise), vset1(VMATH_MAGIC + vmath_bias));
    vreal n = vsub(vfrombits(vi_add(magic, k)), no_k);
    vreal half_f2 = vmul(vset1((real)0.5), vmul(f, f)), s = vdiv(f, vadd(vset1(2), f)), s2 = vmul(s, s);
    vreal rest = vfma(s, vfma(s2, vmath_log_series(s2), half_f2), vmul(n, vset1(VMATH_LN2_LO)));
    vreal y = vsub(vmul(n, vset1(VMATH_LN2_HI)), vsub(vsub(half_f2, rest), f));
    y = vselect(vlt(x, vset1((real)INFINITY)), y, x);       /* infinity and NaN stay */
    return vselect(vle(x, vzero()), vselect(veq(x, vzero()), vset1(-(real)INFINITY), vset1((real)NAN)), y);
}

#endif
