/* vmath.h - exp, log, tanh and sigmoid on the vectors of vec.h.
 *
 * The claims below are what the tests assert: over all 2^32 inputs for float32 (tests/c/vmath_exhaustive.c), against mpmath for
 * float64 (tests/test_vmath.py). "ulp" counts units of the exact result's last place; denormals count as they stand.
 * Nothing here depends on the other lanes, and no lane leaves the vector code: the time does not depend on the values.
 *
 * exp(x) = 2^n exp(r) with n = rint(x / ln 2), |r| <= ln(2)/2, exp(r) - 1 = r + r^2 P(r); log(x) = k ln 2 + log(m), m in
 * [sqrt(1/2), sqrt(2)), log(m) = f - f^2/2 + s (f^2/2 + s^2 R(s^2)), f = m - 1, s = f / (2 + f) (the form of Sun's fdlibm).
 * P and R are minimax polynomials found with the Remez exchange in 50-digit arithmetic (tests/c/vmath_derive.py), P for the
 * least |r^2 (P - exact)|, R for the least |s^2 (R - exact)|.
 */
#ifndef FSQ_VMATH_H
#define FSQ_VMATH_H

#include "vec.h"

#if defined FSQ_F32
enum { vmath_mantissa = 23, vmath_bias = 127, vmath_raise = 24 };
#define VMATH_MAGIC 0x1.8p23f                               /* adding it rounds to an integer, held in the low bits */
#define VMATH_LOG2E 0x1.715476p+0f
#define VMATH_LN2_HI 0x1.63p-1f                             /* 9 bits: times any n it is exact */
#define VMATH_LN2_LO -0x1.bd0106p-13f
#define VMATH_EXP_MIN -104.0f                               /* below log of half the least denormal */
#define VMATH_EXP_MAX 89.0f                                 /* above log of the greatest float */
#define VMATH_TANH_ONE 9.02f                                /* from here on tanh rounds to 1 */
#define VMATH_SQRT_HALF 0x1.6a09e6p-1f
#define VMATH_SMALLEST 0x1p-126f                            /* least normal number */
#define VMATH_RAISE 0x1p24f
#else
enum { vmath_mantissa = 52, vmath_bias = 1023, vmath_raise = 54 };
#define VMATH_MAGIC 0x1.8p52
#define VMATH_LOG2E 0x1.71547652b82fep+0
#define VMATH_LN2_HI 0x1.62e42fefa3p-1                       /* 41 bits: times any n it is exact */
#define VMATH_LN2_LO 0x1.3de6af278ece6p-42
#define VMATH_EXP_MIN -746.0
#define VMATH_EXP_MAX 710.0
#define VMATH_TANH_ONE 19.1
#define VMATH_SQRT_HALF 0x1.6a09e667f3bcdp-1
#define VMATH_SMALLEST 0x1p-1022
#define VMATH_RAISE 0x1p54
#endif

/* exp(r) - 1 for |r| <= ln(2)/2. */
FSQ_INLINE vreal vmath_expm1_near(vreal r) {
    vreal r2 = vmul(r, r);
#if defined FSQ_F32
    vreal low = vfma(r, vset1(0.166665203f), vset1(0.5f));
    vreal high = vfma(r2, vset1(0.00139420201f), vfma(r, vset1(0.00836875925f), vset1(0.0416663869f)));
    vreal p = vfma(r2, high, low);
#else
    vreal r4 = vmul(r2, r2);
    vreal p01 = vfma(r, vset1(0.166666666666666864), vset1(0.5));
    vreal p23 = vfma(r, vset1(0.00833333333331390883), vset1(0.0416666666666026386));
    vreal p45 = vfma(r, vset1(0.00019841269904965779), vset1(0.0013888888927337279));
    vreal p67 = vfma(r, vset1(2.75572260159889265e-6), vset1(2.48015079984041961e-5));
    vreal p89 = vfma(r, vset1(2.51151196086539507e-8), vset1(2.76254595431382044e-7));
    vreal p = vfma(r4, vfma(r4, p89, vfma(r2, p67, p45)), vfma(r2, p23, p01));
#endif
    return vfma(r2, p, r);
}

/* p 2^n, rounded once, for n = the integer in t's low bits, down to the least denormal and up to infinity; 1/2 < p < 2. */
FSQ_INLINE vreal vmath_scale(vreal p, vreal t) {
    vint n2 = vi_sub(vbits(t), vi_sub(vbits(vset1(VMATH_MAGIC)), vi_set1(2 * vmath_bias)));
    vint half = vi_shr(n2, 1);
    vreal scaled = vmul(p, vfrombits(vi_shl(half, vmath_mantissa)));
    return vmul(scaled, vfrombits(vi_shl(vi_sub(n2, half), vmath_mantissa)));
}

/* exp of x in [VMATH_EXP_MIN, VMATH_EXP_MAX] or NaN. */
FSQ_INLINE vreal vmath_exp_in_range(vreal x) {
    vreal t = vfma(x, vset1(VMATH_LOG2E), vset1(VMATH_MAGIC));
    vreal n = vsub(t, vset1(VMATH_MAGIC));
    vreal r = vfnma(n, vset1(VMATH_LN2_LO), vfnma(n, vset1(VMATH_LN2_HI), x));
    return vmath_scale(vadd(vset1(1), vmath_expm1_near(r)), t);
}

FSQ_INLINE vreal vexp(vreal x) {
    /* in this order of operands a NaN passes */
    return vmath_exp_in_range(vmin(vset1(VMATH_EXP_MAX), vmax(vset1(VMATH_EXP_MIN), x)));
}

FSQ_INLINE vreal vsigmoid(vreal x) {
    vreal minus_abs = vfrombits(vi_or(vbits(x), vbits(vset1((real)-0.0))));
    vreal e = vmath_exp_in_range(vmax(vset1(VMATH_EXP_MIN), minus_abs));
    return vdiv(vselect(vlt(x, vzero()), e, vset1(1)), vadd(vset1(1), e));
}

FSQ_INLINE vreal vtanh(vreal x) {
    vreal a = vmin(vset1(VMATH_TANH_ONE), vabs(x));
    vreal t = vfma(a, vset1(2 * VMATH_LOG2E), vset1(VMATH_MAGIC));
    vreal n = vsub(t, vset1(VMATH_MAGIC));
    vreal r = vfnma(n, vset1(VMATH_LN2_LO), vfnma(n, vset1(VMATH_LN2_HI), vadd(a, a)));
    vreal u = vmath_expm1_near(r);
    vreal half = vfrombits(vi_add(vi_shl(vbits(t), vmath_mantissa), vbits(vset1((real)0.5)))); /* 2^n / 2 */
    vreal above = vfma(half, u, vsub(half, vset1((real)0.5)));
    vreal below = vfma(half, u, vadd(half, vset1((real)0.5)));
    vreal y = vdiv(above, below);
    return vfrombits(vi_or(vbits(y), vi_and(vbits(x), vbits(vset1((real)-0.0)))));
}

/* R(s^2) of the logarithm, 0 <= s2 <= 0.0295. */
FSQ_INLINE vreal vmath_log_series(vreal s2) {
#if defined FSQ_F32
    return vfma(s2, vfma(s2, vset1(0.298724005f), vset1(0.399775186f)), vset1(0.666667765f));
#else
    vreal s4 = vmul(s2, s2);
    vreal even = vfma(s4, vfma(s4, vset1(0.153139769198132138), vset1(0.222221985246220516)), vset1(0.399999999994128875));
    vreal odd = vfma(s4, vfma(s4, vfma(s4, vset1(0.147967286785859092), vset1(0.181835670315608242)), vset1(0.28571428742824721)), vset1(0.666666666666673465));
    return vfma(s2, even, odd);
#endif
}

FSQ_INLINE vreal vlog(vreal x) {
    vmask denormal = vlt(x, vset1(VMATH_SMALLEST));
    vreal z = vselect(denormal, vmul(x, vset1(VMATH_RAISE)), x);
    vint above = vi_sub(vbits(z), vi_sub(vbits(vset1(VMATH_SQRT_HALF)), vbits(vset1(1))));
    vint k = vi_shr(above, vmath_mantissa);                 /* biased */
    vint one = vbits(vset1(1));
    vreal m = vfrombits(vi_add(vi_sub(vbits(z), vi_shl(k, vmath_mantissa)), one));
    vreal zero_k = vselect(denormal, vset1(VMATH_MAGIC + vmath_bias + vmath_raise), vset1(VMATH_MAGIC + vmath_bias));
    vreal kf = vsub(vfrombits(vi_add(vbits(vset1(VMATH_MAGIC)), k)), zero_k);
    vreal f = vsub(m, vset1(1)), half_f2 = vmul(vset1((real)0.5), vmul(f, f));
    vreal s = vdiv(f, vadd(vset1(2), f)), s2 = vmul(s, s);
    vreal small = vfma(s, vfma(s2, vmath_log_series(s2), half_f2), vmul(kf, vset1(VMATH_LN2_LO)));
    vreal y = vsub(vmul(kf, vset1(VMATH_LN2_HI)), vsub(vsub(half_f2, small), f));
    y = vselect(vlt(x, vset1((real)INFINITY)), y, x);       /* infinity and NaN */
    return vselect(vle(x, vzero()), vselect(veq(x, vzero()), vset1(-(real)INFINITY), vset1((real)NAN)), y);
}
#endif
