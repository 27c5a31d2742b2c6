/* pointwise.c - y = f(x) and dx = dy f'(x) on contiguous elements.
 *
 * Bound by the division and the polynomials of simd/vmath.h while the arrays are in the cache, by bytes beyond it. An element's
 * result does not depend on its neighbours or its position: the last, partial vector goes through the same instructions. */

FSQ_INLINE vreal pointwise_relu(vreal x) { return vselect(vlt(x, vzero()), vzero(), x); }  /* a NaN stays */

enum { pointwise_gelu_most = 40 };                          /* beyond, gelu_tanh is 0 or x and its derivative 0 or 1, in float64 too */

FSQ_INLINE vreal pointwise_clamped(vreal x) { return vmin(vset1(pointwise_gelu_most), vmax(vset1(-pointwise_gelu_most), x)); }

/* 2 sqrt(2 / pi) (x + 0.044715 x^3), whose sigmoid stands for Phi(x). */
FSQ_INLINE vreal pointwise_tanh_argument(vreal x) {
    return vmul(x, vfma(vmul(x, x), vset1((real)0.0713548162726002488), vset1((real)1.59576912160573071)));
}

/* The lower limit keeps -infinity from 0 times infinity. */
FSQ_INLINE vreal pointwise_gelu_tanh(vreal x) {
    return vmul(vmax(vset1(-pointwise_gelu_most), x), vsigmoid(pointwise_tanh_argument(pointwise_clamped(x))));
}

enum { pointwise_silu_most = 800 };                         /* below, the sigmoid is 0, in float64 too; keeps -infinity from 0 times infinity */

FSQ_INLINE vreal pointwise_silu(vreal x) { return vmul(vmax(vset1(-pointwise_silu_most), x), vsigmoid(x)); }
FSQ_INLINE vreal pointwise_elu(vreal x, vreal p) { return vselect(vlt(x, vzero()), vmul(p, vexpm1_down(vmin(vzero(), x))), x); }
FSQ_INLINE vreal pointwise_leaky_relu(vreal x, vreal p) { return vselect(vlt(x, vzero()), vmul(p, x), x); }

/* p: the function's parameter, where it has one */
#define POINTWISE_FORWARD(function, value)                                                                                        \
    static void pointwise_forward_##function(real *y, const real *from, ptrdiff_t n, real parameter) {                            \
        const vreal p = vset1(parameter);                                                                                         \
        ptrdiff_t i = 0;                                                                                                          \
        (void)p;                                                                                                                  \
        for (; i + VL <= n; i += VL) {                                                                                            \
            const vreal x = vload(from + i);                                                                                      \
            vstore(y + i, value);                                                                                                 \
        }                                                                                                                         \
        if (i < n) {                                                                                                              \
            const vreal x = vload_n(from + i, n - i);                                                                             \
            vstore_n(y + i, value, n - i);                                                                                        \
        }                                                                                                                         \
    }
POINTWISE_FORWARD(identity, x)
POINTWISE_FORWARD(exp, vexp(x))
POINTWISE_FORWARD(log, vlog(x))
POINTWISE_FORWARD(tanh, vtanh(x))
POINTWISE_FORWARD(sigmoid, vsigmoid(x))
POINTWISE_FORWARD(relu, pointwise_relu(x))
POINTWISE_FORWARD(erf, verf(x))
POINTWISE_FORWARD(gelu, vgelu(x))
POINTWISE_FORWARD(gelu_tanh, pointwise_gelu_tanh(x))
POINTWISE_FORWARD(silu, pointwise_silu(x))
POINTWISE_FORWARD(softplus, vsoftplus(x))
POINTWISE_FORWARD(elu, pointwise_elu(x, p))
POINTWISE_FORWARD(leaky_relu, pointwise_leaky_relu(x, p))

/* s is what forward saved: y = f(x), for log, erf and what follows it x. */
FSQ_INLINE vreal pointwise_d_exp(vreal s, vreal dy) { return vmul(dy, s); }
FSQ_INLINE vreal pointwise_d_log(vreal s, vreal dy) { return vdiv(dy, s); }
FSQ_INLINE vreal pointwise_d_tanh(vreal s, vreal dy) { return vmul(dy, vfnma(s, s, vset1(1))); }
FSQ_INLINE vreal pointwise_d_sigmoid(vreal s, vreal dy) { return vmul(dy, vmul(s, vsub(vset1(1), s))); }
FSQ_INLINE vreal pointwise_d_relu(vreal s, vreal dy) { return vselect(vle(s, vzero()), vzero(), dy); }
/* 2 / sqrt(pi) exp(-x^2) */
FSQ_INLINE vreal pointwise_d_erf(vreal s, vreal dy) {
    vreal a = vmul(vmin(vset1(VMATH_MILLS_MAX), vabs(s)), vset1((real)1.41421356237309505));
    return vmul(dy, vmul(vset1((real)1.12837916709551257), vexp_down(vmul(vset1((real)-0.5), vmul(a, a)))));
}
/* Phi(x) + x exp(-x^2 / 2) / sqrt(2 pi) */
FSQ_INLINE vreal pointwise_d_gelu(vreal s, vreal dy) {
    vreal a = vmin(vset1(VMATH_MILLS_MAX), vabs(s)), e = vmath_gauss(a), tail = vmath_mills(a), density = vmul(a, vset1((real)0.398942280401432678));
    return vmul(dy, vselect(vlt(s, vzero()), vmul(e, vsub(tail, density)), vfma(e, vsub(density, tail), vset1(1))));
}
/* p + x p (1 - p) t', p = sigmoid(t); 1 - p is made of exp(-|t|), for it is small where t is large. */
FSQ_INLINE vreal pointwise_d_gelu_tanh(vreal s, vreal dy) {
    vreal x = pointwise_clamped(s), t = pointwise_tanh_argument(x);
    vreal e = vexp_down(vneg(vabs(t))), greater = vdiv(vset1(1), vadd(vset1(1), e)), less = vmul(e, greater);
    vreal slope = vfma(vmul(x, x), vset1((real)0.214064448817800746), vset1((real)1.59576912160573071));
    return vmul(dy, vfma(vmul(x, slope), vmul(less, greater), vselect(vlt(t, vzero()), less, greater)));
}

/* s(x) + x s(x) s(-x) */
FSQ_INLINE vreal pointwise_d_silu(vreal s, vreal dy) {
    vreal x = vmin(vset1(pointwise_silu_most), vmax(vset1(-pointwise_silu_most), s));
    vreal e = vexp_down(vneg(vabs(x))), greater = vdiv(vset1(1), vadd(vset1(1), e)), less = vmul(e, greater);
    return vmul(dy, vfma(vmul(x, less), greater, vselect(vlt(x, vzero()), less, greater)));
}
FSQ_INLINE vreal pointwise_d_softplus(vreal s, vreal dy) { return vmul(dy, vsigmoid(s)); }
/* At 0 the derivative from below, as PyTorch's. */
FSQ_INLINE vreal pointwise_d_elu(vreal s, vreal dy, vreal p) {
    return vselect(vgt(s, vzero()), dy, vmul(dy, vmul(p, vexp_down(vmin(vzero(), s)))));
}
FSQ_INLINE vreal pointwise_d_leaky_relu(vreal s, vreal dy, vreal p) { return vselect(vgt(s, vzero()), dy, vmul(p, dy)); }

#define POINTWISE_BACKWARD(function, value)                                                                                       \
    static void pointwise_backward_##function(real *dx, const real *saved, const real *from, ptrdiff_t n, real parameter) {       \
        const vreal p = vset1(parameter);                                                                                         \
        ptrdiff_t i = 0;                                                                                                          \
        (void)p;                                                                                                                  \
        for (; i + VL <= n; i += VL) {                                                                                            \
            const vreal s = vload(saved + i), dy = vload(from + i);                                                               \
            (void)s;                                                                                                              \
            vstore(dx + i, value);                                                                                                \
        }                                                                                                                         \
        if (i < n) {                                                                                                              \
            const vreal s = vload_n(saved + i, n - i), dy = vload_n(from + i, n - i);                                             \
            (void)s;                                                                                                              \
            vstore_n(dx + i, value, n - i);                                                                                       \
        }                                                                                                                         \
    }
POINTWISE_BACKWARD(identity, dy)
POINTWISE_BACKWARD(exp, pointwise_d_exp(s, dy))
POINTWISE_BACKWARD(log, pointwise_d_log(s, dy))
POINTWISE_BACKWARD(tanh, pointwise_d_tanh(s, dy))
POINTWISE_BACKWARD(sigmoid, pointwise_d_sigmoid(s, dy))
POINTWISE_BACKWARD(relu, pointwise_d_relu(s, dy))
POINTWISE_BACKWARD(erf, pointwise_d_erf(s, dy))
POINTWISE_BACKWARD(gelu, pointwise_d_gelu(s, dy))
POINTWISE_BACKWARD(gelu_tanh, pointwise_d_gelu_tanh(s, dy))
POINTWISE_BACKWARD(silu, pointwise_d_silu(s, dy))
POINTWISE_BACKWARD(softplus, pointwise_d_softplus(s, dy))
POINTWISE_BACKWARD(elu, pointwise_d_elu(s, dy, p))
POINTWISE_BACKWARD(leaky_relu, pointwise_d_leaky_relu(s, dy, p))
