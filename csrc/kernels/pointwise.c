/* pointwise.c - y = f(x) and dx = dy f'(x) on contiguous elements.
 *
 * Bound by the division and the polynomials of simd/vmath.h while the arrays are in the cache, by bytes beyond it. An element's
 * result does not depend on its neighbours or its position: the last, partial vector goes through the same instructions. */

FSQ_INLINE vreal pointwise_identity(vreal x) { return x; }
FSQ_INLINE vreal pointwise_relu(vreal x) { return vselect(vlt(x, vzero()), vzero(), x); }  /* a NaN stays */

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

/* s is what forward saved: y = f(x), for log x. */
FSQ_INLINE vreal pointwise_d_identity(vreal s, vreal dy) { (void)s; return dy; }
FSQ_INLINE vreal pointwise_d_exp(vreal s, vreal dy) { return vmul(dy, s); }
FSQ_INLINE vreal pointwise_d_log(vreal s, vreal dy) { return vdiv(dy, s); }
FSQ_INLINE vreal pointwise_d_tanh(vreal s, vreal dy) { return vmul(dy, vfnma(s, s, vset1(1))); }
FSQ_INLINE vreal pointwise_d_sigmoid(vreal s, vreal dy) { return vmul(dy, vmul(s, vsub(vset1(1), s))); }
FSQ_INLINE vreal pointwise_d_relu(vreal s, vreal dy) { return vselect(vle(s, vzero()), vzero(), dy); }

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
