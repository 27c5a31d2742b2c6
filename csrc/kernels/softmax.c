/* softmax.c - y = exp(x - max) / sum over rows, and dx = y (dy - sum(y dy)); its logarithm, y = x - max - log(sum) and
 * dx = dy - exp(y) sum(dy).
 *
 * Three passes over a row that stays in the cache: maximum, exponentials and their sum, scaling. Bound by the polynomial of vexp_down.
 * A row is summed in an order that depends on its length alone: rows do not know of each other. Also the rows of cross_entropy.c. */

enum { softmax_chains = 4 };                                /* partial sums: hides the latency of an addition, and keeps the error of long rows down */

/* The first n lanes of p, `other` in the rest; 1 <= n <= VL. */
FSQ_INLINE vreal softmax_tail(const real *p, ptrdiff_t n, real other) {
    static const real lanes[16] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    return vselect(vlt(vload(lanes), vset1((real)n)), vload_n(p, n), vset1(other));
}

/* The greatest of x (n); NaNs are passed over, and -inf where there is nothing else. */
FSQ_INLINE real softmax_maximum(const real *x, ptrdiff_t n) {
    vreal m[softmax_chains];
#pragma GCC unroll 4
    for (int c = 0; c < softmax_chains; c++) m[c] = vset1(-(real)INFINITY);
    ptrdiff_t i = 0;
    for (; i + softmax_chains * VL <= n; i += softmax_chains * VL)
#pragma GCC unroll 4
        for (int c = 0; c < softmax_chains; c++) m[c] = vmax(vload(x + i + c * VL), m[c]);
    for (; i + VL <= n; i += VL) m[0] = vmax(vload(x + i), m[0]);
    if (i < n) m[1] = vmax(softmax_tail(x + i, n - i, -(real)INFINITY), m[1]);
    return vmaximum(vmax(vmax(m[0], m[1]), vmax(m[2], m[3])));
}

/* What is subtracted before exp: the maximum, but 0 for a row of nothing but -inf, whose exponentials are then 0 instead of NaN. */
FSQ_INLINE real softmax_shift(real maximum) { return maximum == -(real)INFINITY ? 0 : maximum; }

/* The sum of exp(x - shift) over n; the terms go to y where it is not NULL. */
FSQ_INLINE real softmax_exp_sum(real *y, const real *x, ptrdiff_t n, real shift) {
    vreal sum[softmax_chains], by = vset1(shift);
#pragma GCC unroll 4
    for (int c = 0; c < softmax_chains; c++) sum[c] = vzero();
    ptrdiff_t i = 0;
    for (; i + softmax_chains * VL <= n; i += softmax_chains * VL)
#pragma GCC unroll 4
        for (int c = 0; c < softmax_chains; c++) {
            vreal e = vexp_down(vsub(vload(x + i + c * VL), by));
            if (y) vstore(y + i + c * VL, e);
            sum[c] = vadd(sum[c], e);
        }
    for (; i + VL <= n; i += VL) {
        vreal e = vexp_down(vsub(vload(x + i), by));
        if (y) vstore(y + i, e);
        sum[0] = vadd(sum[0], e);
    }
    if (i < n) {
        vreal e = vexp_down(vsub(softmax_tail(x + i, n - i, -(real)INFINITY), by));
        if (y) vstore_n(y + i, e, n - i);
        sum[1] = vadd(sum[1], e);
    }
    return vsum(vadd(vadd(sum[0], sum[1]), vadd(sum[2], sum[3])));
}

/* y = exp(x - max) / sum exp(x - max) */
static void softmax_forward(real *y, const real *x, ptrdiff_t rows, ptrdiff_t N) {
    for (ptrdiff_t r = 0; r < rows; r++, x += N, y += N) {
        real sum = softmax_exp_sum(y, x, N, softmax_shift(softmax_maximum(x, N)));
        vreal factor = vset1(sum == 0 ? 0 : 1 / sum);
        ptrdiff_t i = 0;
        for (; i + VL <= N; i += VL) vstore(y + i, vmul(vload(y + i), factor));
        if (i < N) vstore_n(y + i, vmul(vload_n(y + i, N - i), factor), N - i);
    }
}

/* dx = y (dy - sum(y dy)) */
static void softmax_backward(real *dx, const real *y, const real *dy, ptrdiff_t rows, ptrdiff_t N) {
    for (ptrdiff_t r = 0; r < rows; r++, y += N, dy += N, dx += N) {
        vreal dot[softmax_chains];
#pragma GCC unroll 4
        for (int c = 0; c < softmax_chains; c++) dot[c] = vzero();
        ptrdiff_t i = 0;
        for (; i + softmax_chains * VL <= N; i += softmax_chains * VL)
#pragma GCC unroll 4
            for (int c = 0; c < softmax_chains; c++) dot[c] = vfma(vload(y + i + c * VL), vload(dy + i + c * VL), dot[c]);
        for (; i + VL <= N; i += VL) dot[0] = vfma(vload(y + i), vload(dy + i), dot[0]);
        if (i < N) dot[1] = vfma(vload_n(y + i, N - i), vload_n(dy + i, N - i), dot[1]);
        vreal sum = vset1(vsum(vadd(vadd(dot[0], dot[1]), vadd(dot[2], dot[3]))));
        for (i = 0; i + VL <= N; i += VL) vstore(dx + i, vmul(vload(y + i), vsub(vload(dy + i), sum)));
        if (i < N) vstore_n(dx + i, vmul(vload_n(y + i, N - i), vsub(vload_n(dy + i, N - i), sum)), N - i);
    }
}

/* y = x - max - log(sum exp(x - max)); the logarithms of VL rows together. A row of nothing but -inf stays what it is. */
static void log_softmax_forward(real *y, const real *x, ptrdiff_t rows, ptrdiff_t N) {
    for (ptrdiff_t first = 0; first < rows; first += VL) {
        ptrdiff_t count = rows - first < VL ? rows - first : VL;
        real logs[VL] = {0}, shifts[VL] = {0};
        for (ptrdiff_t r = 0; r < count; r++) {
            shifts[r] = softmax_shift(softmax_maximum(x + r * N, N));
            real sum = softmax_exp_sum(NULL, x + r * N, N, shifts[r]);
            logs[r] = sum == 0 ? 1 : sum;                   /* log(1): -inf - 0 */
        }
        vstore(logs, vlog(vload(logs)));
        for (ptrdiff_t r = 0; r < count; r++, x += N, y += N) {
            vreal shift = vset1(shifts[r]), log_sum = vset1(logs[r]);
            ptrdiff_t i = 0;
            for (; i + VL <= N; i += VL) vstore(y + i, vsub(vsub(vload(x + i), shift), log_sum));
            if (i < N) vstore_n(y + i, vsub(vsub(vload_n(x + i, N - i), shift), log_sum), N - i);
        }
    }
}

/* dx = dy - exp(y) sum(dy) */
static void log_softmax_backward(real *dx, const real *y, const real *dy, ptrdiff_t rows, ptrdiff_t N) {
    for (ptrdiff_t r = 0; r < rows; r++, y += N, dy += N, dx += N) {
        vreal sum[softmax_chains];
#pragma GCC unroll 4
        for (int c = 0; c < softmax_chains; c++) sum[c] = vzero();
        ptrdiff_t i = 0;
        for (; i + softmax_chains * VL <= N; i += softmax_chains * VL)
#pragma GCC unroll 4
            for (int c = 0; c < softmax_chains; c++) sum[c] = vadd(sum[c], vload(dy + i + c * VL));
        for (; i + VL <= N; i += VL) sum[0] = vadd(sum[0], vload(dy + i));
        if (i < N) sum[1] = vadd(sum[1], vload_n(dy + i, N - i));
        vreal all = vset1(vsum(vadd(vadd(sum[0], sum[1]), vadd(sum[2], sum[3]))));
        for (i = 0; i + VL <= N; i += VL) vstore(dx + i, vfnma(vexp_down(vload(y + i)), all, vload(dy + i)));
        if (i < N) vstore_n(dx + i, vfnma(vexp_down(vload_n(y + i, N - i)), all, vload_n(dy + i, N - i)), N - i);
    }
}
