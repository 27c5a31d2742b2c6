/* pointwise.c - y = f(x) and dx = dy f'(x) on contiguous elements.
 *
 * Bound by the division and the polynomials of simd/vmath.h while the arrays are in the cache, by bytes beyond it. An element's
 * result does not depend on its neighbours or its position: the last, partial vector goes through the same instructions. */

FSQ_INLINE vreal pointwise_identity(vreal x) { return x; }
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

#define POINTWISE_FORWARD(name, f)                                                                                                 \
    static void name(real *y, const real *x, ptrdiff_t n) {                                                                        \
        ptrdiff_t i = 0;                                                                                                           \
        for (; i + VL <= n; i += VL) vstore(y + i, f(vload(x + i)));                                                               \
        if (i < n) vstore_n(y + i, f(vload_n(x + i, n - i)), n - i);                                                               \
    }
POINTWISE_FORWARD(pointwise_forward_identity, pointwise_identity)
POINTWISE_FORWARD(pointwise_forward_exp, vexp)
POINTWISE_FORWARD(pointwise_forward_log, vlog)
POINTWISE_FORWARD(pointwise_forward_tanh, vtanh)
POINTWISE_FORWARD(pointwise_forward_sigmoid, vsigmoid)
POINTWISE_FORWARD(pointwise_forward_relu, pointwise_relu)
POINTWISE_FORWARD(pointwise_forward_erf, verf)
POINTWISE_FORWARD(pointwise_forward_gelu, vgelu)
POINTWISE_FORWARD(pointwise_forward_gelu_tanh, pointwise_gelu_tanh)

/* s is what forward saved: y = f(x), for log, erf and gelu x. */
FSQ_INLINE vreal pointwise_d_identity(vreal s, vreal dy) { (void)s; return dy; }
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

#define POINTWISE_BACKWARD(name, f)                                                                                                \
    static void name(real *dx, const real *saved, const real *dy, ptrdiff_t n) {                                                   \
        ptrdiff_t i = 0;                                                                                                           \
        for (; i + VL <= n; i += VL) vstore(dx + i, f(vload(saved + i), vload(dy + i)));                                           \
        if (i < n) vstore_n(dx + i, f(vload_n(saved + i, n - i), vload_n(dy + i, n - i)), n - i);                                  \
    }
POINTWISE_BACKWARD(pointwise_backward_identity, pointwise_d_identity)
POINTWISE_BACKWARD(pointwise_backward_exp, pointwise_d_exp)
POINTWISE_BACKWARD(pointwise_backward_log, pointwise_d_log)
POINTWISE_BACKWARD(pointwise_backward_tanh, pointwise_d_tanh)
POINTWISE_BACKWARD(pointwise_backward_sigmoid, pointwise_d_sigmoid)
POINTWISE_BACKWARD(pointwise_backward_relu, pointwise_d_relu)
POINTWISE_BACKWARD(pointwise_backward_erf, pointwise_d_erf)
POINTWISE_BACKWARD(pointwise_backward_gelu, pointwise_d_gelu)
POINTWISE_BACKWARD(pointwise_backward_gelu_tanh, pointwise_d_gelu_tanh)
