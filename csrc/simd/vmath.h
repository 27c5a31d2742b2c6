/* vmath.h - exp, expm1, log, tanh, sigmoid, softplus, erf and GELU on the vectors of vec.h.
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
 * s^2 R by 2^-29.2, in float64 by 2^-57.3 and 2^-58.5. AVX-512 has tables in registers: vmath_avx512.h.
 * The tail of the normal distribution is Phi(-a) = exp(-a^2 / 2) M(a), M smooth: a polynomial of q = (a - K) / (a + K) over a + K
 * (Shepherd & Laframboise 1981), off by 2^-29.9 and 2^-57.9, relative. erf is made of it, and near 0 of x P(x^2), off by 2^-29.6 and
 * 2^-56.9. */
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
#define VMATH_ERF_ONE 4.0f                                  /* from 3.92 on erf rounds to 1 */
#define VMATH_MILLS_POLE 3.0f
#define VMATH_MILLS_MAX 15.0f                               /* from 14.4 on exp(-a^2 / 2) is 0 */
#define VMATH_UPPER_HALF ((int64_t)0xfffff000)              /* 12 of 24 bits: their square is exact */
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
#define VMATH_ERF_ONE 6.0                                   /* from 5.93 on */
#define VMATH_MILLS_POLE 6.0
#define VMATH_MILLS_MAX 39.0                                /* from 38.6 on */
#define VMATH_UPPER_HALF (-((int64_t)1 << 27))               /* 26 of 53 bits */
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

/* exp(x) - 1 for x <= 0
 * range: x <= 0, undefined above; -1 from -17.4 (float64: -37.5) on down
 * ulp: float32 3 with FMA and without; float64 3
 * -0 -> 0, -inf -> -1, NaN -> NaN */
FSQ_INLINE vreal vexpm1_down(vreal x) {
    vreal far = vsub(vexp_down(x), vset1(1));               /* at most 1 / sqrt(2) - 1: nothing cancels */
    return vselect(vlt(x, vset1(-VMATH_LN2 / 2)), far, vmath_expm1_near(x));
}

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

/* softplus(x) = log(1 + exp(x)) = max(x, 0) + log(1 + exp(-|x|))
 * range: all; gradual underflow as exp's
 * ulp: float32 3 with FMA and without; float64 3
 * +-0 -> log 2, inf -> inf, -inf -> 0, NaN -> NaN */
FSQ_INLINE vreal vsoftplus(vreal x) {
    vreal e = vexp_down(vfrombits(vi_or(vbits(x), vbits(vset1((real)-0.0))))), above = vadd(vset1(1), e);   /* exp(-|x|) */
    vreal lost = vsub(e, vsub(above, vset1(1)));            /* what the sum rounded away, first order: log(a + d) = log(a) + d / a */
    return vadd(vmax(vzero(), x), vadd(vlog(above), vdiv(lost, above)));    /* in this order of operands a NaN passes */
}

/* (a + K) M(a), M(a) = Phi(-a) / exp(-a^2 / 2), for q = (a - K) / (a + K), 0 <= a <= VMATH_MILLS_MAX. */
FSQ_INLINE vreal vmath_mills_scaled(vreal q) {
    vreal q2 = vmul(q, q);
#if defined FSQ_F32
    vreal even = vset1(5.44890739e-5f);
    even = vfma(q2, vfma(q2, vfma(q2, even, vset1(-0.000244730074f)), vset1(0.00102475402f)), vset1(-0.0104625129f));
    even = vfma(q2, vfma(q2, even, vset1(0.230017699f)), vset1(0.72908369f));
    vreal odd = vset1(0.000131330222f);
    odd = vfma(q2, vfma(q2, vfma(q2, odd, vset1(-0.00103257359f)), vset1(0.00696931129f)), vset1(-0.047262688f));
    odd = vfma(q2, odd, vset1(-0.509331991f));
#else
    vreal even = vset1(6.94566992229070563e-10);
    even = vfma(q2, vfma(q2, vfma(q2, even, vset1(7.09120029316546495e-12)), vset1(9.92773967527365295e-9)), vset1(-4.31216149082464846e-7));
    even = vfma(q2, vfma(q2, vfma(q2, even, vset1(6.79713084910995622e-6)), vset1(-0.0000647522346760834496)), vset1(0.0000328700662500735594));
    even = vfma(q2, vfma(q2, vfma(q2, even, vset1(0.0100298206345823469)), vset1(0.0751719156693901514)), vset1(0.26797424584163836));
    even = vfma(q2, vfma(q2, even, vset1(0.568968891814783956)), vset1(0.77735177189336219));
    vreal odd = vset1(4.72428189957069638e-9);
    odd = vfma(q2, vfma(q2, vfma(q2, odd, vset1(-4.29635995737396704e-8)), vset1(3.10289054473121407e-7)), vset1(-1.79967730984727668e-6));
    odd = vfma(q2, vfma(q2, vfma(q2, odd, vset1(1.07558492321933323e-6)), vset1(0.0001813604213966857)), vset1(-0.00213160521082545477));
    odd = vfma(q2, vfma(q2, vfma(q2, odd, vset1(-0.0309853155075412322)), vset1(-0.152680232064495335)), vset1(-0.413903585775590385));
    odd = vfma(q2, odd, vset1(-0.701009029590865548));
#endif
    return vfma(q, odd, even);
}

/* M(a): Mills' ratio over sqrt(2 pi). */
FSQ_INLINE vreal vmath_mills(vreal a) {
    vreal inverse = vdiv(vset1(1), vadd(a, vset1(VMATH_MILLS_POLE)));
    return vmul(inverse, vmath_mills_scaled(vfnma(vset1(2 * VMATH_MILLS_POLE), inverse, vset1(1))));
}

/* erf(x) / x for |x| <= 1, z = x^2. */
FSQ_INLINE vreal vmath_erf_near(vreal z) {
#if defined FSQ_F32
    vreal p = vset1(7.85385137e-5f);
    p = vfma(z, vfma(z, vfma(z, p, vset1(-0.000801019055f)), vset1(0.00518832733f)), vset1(-0.0268538117f));
    p = vfma(z, vfma(z, vfma(z, p, vset1(0.112835851f)), vset1(-0.376126258f)), vset1(1.12837917f));
#else
    vreal z2 = vmul(z, z);
    vreal even = vset1(1.37109827486783666e-8);
    even = vfma(z2, vfma(z2, vfma(z2, even, vset1(1.64471316382515975e-6)), vset1(0.000120552935771527619)), vset1(0.00522397760611861385));
    even = vfma(z2, vfma(z2, even, vset1(0.112837916709441848)), vset1(1.12837916709551257));
    vreal odd = vset1(-7.77947294842681541e-10);
    odd = vfma(z2, vfma(z2, vfma(z2, odd, vset1(-1.62063142891137823e-7)), vset1(-0.0000149247123071858368)), vset1(-0.000854832592932217073));
    odd = vfma(z2, vfma(z2, odd, vset1(-0.0268661706431114814)), vset1(-0.376126389031835195));
    vreal p = vfma(z, odd, even);
#endif
    return p;
}

/* erf
 * range: all; 1 from 3.92 (float64: 5.93) on
 * ulp: float32 3 with FMA and without; float64 4
 * +-0 -> +-0, +-inf -> +-1, NaN -> NaN */
FSQ_INLINE vreal verf(vreal x) {
    vreal a = vmin(vset1(VMATH_ERF_ONE), vabs(x)), z = vmul(a, a), one = vset1(1);
    vreal tail = vmul(vexp_down(vneg(z)), vmath_mills(vmul(a, vset1((real)1.41421356237309505))));  /* (1 - erf(a)) / 2 */
    vreal y = vselect(vlt(a, one), vmul(a, vmath_erf_near(z)), vfnma(vset1(2), tail, one));
    return vfrombits(vi_or(vbits(y), vi_and(vbits(x), vbits(vset1((real)-0.0)))));
}

/* exp(-a^2 / 2) with what a^2 rounds away: a part in 2^17 in float32 where the result is small. */
FSQ_INLINE vreal vmath_gauss(vreal a) {
    vreal square = vmul(a, a), half = vset1((real)0.5);
#if FSQ_HAS_FMA
    vreal rest = vfma(a, a, vneg(square));
#else
    vreal high = vfrombits(vi_and(vbits(a), vi_set1(VMATH_UPPER_HALF))), low = vsub(a, high);       /* Dekker 1971 */
    vreal rest = vadd(vadd(vsub(vmul(high, high), square), vmul(vadd(high, high), low)), vmul(low, low));
#endif
    vreal e = vexp_down(vmul(vneg(half), square));
    return vfnma(vmul(e, half), rest, e);
}

/* gelu(x) = x Phi(x) = max(x, 0) - |x| Phi(-|x|)
 * range: all; gradual underflow from -12.9 (float64: -37.4) on down
 * ulp: float32 6 with FMA and without; float64 6
 * +-0 -> +-0, inf -> inf, -inf -> -0, NaN -> NaN */
FSQ_INLINE vreal vgelu(vreal x) {
    vreal a = vmin(vset1(VMATH_MILLS_MAX), vabs(x));
    vreal share = vdiv(a, vadd(a, vset1(VMATH_MILLS_POLE))), scaled = vmath_mills_scaled(vfma(vset1(2), share, vset1(-1)));
    vreal y = vfnma(vmul(vmath_gauss(a), share), scaled, vmax(vzero(), x));         /* in this order of operands a NaN passes */
    return vfrombits(vi_or(vbits(y), vi_and(vbits(x), vbits(vset1((real)-0.0)))));
}

#endif
