/* layer_norm.c - y = weight (s - mean) rstd + bias over rows of s = x + residual, and its derivative; RMS norm where the mean counts as 0.
 *
 * rstd = 1 / sqrt(mean((s - mean)^2) + eps) (Ba et al. 2016; RMS norm: Zhang & Sennrich 2019). The sum with the residual, mean, variance
 * and result are made of a row while it stays in L1: bound by the bytes of x, residual, s and y. Backward makes xhat again of s. Also the
 * moments of the recurrent layers' norm.c. */

typedef struct { vreal mean, rstd; } norm_moments;

/* Mean (0 if not centred) and 1 / sqrt(variance + eps) of x (n), two passes; four chains, for one would wait for its own additions. */
FSQ_INLINE norm_moments norm_moments_of(const real *x, ptrdiff_t n, real eps, const int centred) {
    norm_moments of = {vzero(), vzero()};
    real means[VL];
    vstore(means, of.mean);
    for (int pass = !centred; pass < 2; pass++) {
        vreal sum[4] = {vzero(), vzero(), vzero(), vzero()};
        ptrdiff_t u = 0;
        for (; u + 4 * VL <= n; u += 4 * VL)
#pragma GCC unroll 4
            for (int v = 0; v < 4; v++) {
                vreal d = vsub(vload(x + u + v * VL), of.mean);
                sum[v] = pass ? vfma(d, d, sum[v]) : vadd(sum[v], d);
            }
        for (; u < n; u += VL) {
            ptrdiff_t width = n - u < VL ? n - u : VL;
            vreal mean = width == VL || !pass ? of.mean : vload_n(means, width);     /* no lane past n counts */
            vreal d = vsub(cell_load(x + u, width), mean);
            sum[0] = pass ? vfma(d, d, sum[0]) : vadd(sum[0], d);
        }
        vreal all = vset1(vsum(vadd(vadd(sum[0], sum[1]), vadd(sum[2], sum[3]))) / (real)n);
        if (pass) of.rstd = vdiv(vset1(1), vsqrt(vadd(all, vset1(eps))));
        else vstore(means, of.mean = all);
    }
    return of;
}

/* ---------------------------------------------------------------- forward */

FSQ_INLINE void layer_norm_add(real *s, const real *x, const real *residual, ptrdiff_t N) {
    ptrdiff_t u = 0;
    for (; u + VL <= N; u += VL) vstore(s + u, vadd(vload(x + u), vload(residual + u)));
    if (u < N) vstore_n(s + u, vadd(vload_n(x + u, N - u), vload_n(residual + u, N - u)), N - u);
}

/* `width` elements of y; weight and bias may be NULL. */
FSQ_INLINE void layer_norm_apply(real *y, const real *s, const real *weight, const real *bias, const norm_moments *m, ptrdiff_t width) {
    vreal v = vmul(vsub(cell_load(s, width), m->mean), m->rstd);
    if (weight) v = vfma(v, cell_load(weight, width), bias ? cell_load(bias, width) : vset1((real)-0.0));    /* -0: the sign of a zero stays */
    else if (bias) v = vadd(v, cell_load(bias, width));
    cell_store(y, v, width);
}

FSQ_INLINE void layer_norm_forward(const layer_norm_rows *a, const int centred) {
    const ptrdiff_t N = a->N;
    for (ptrdiff_t r = 0; r < a->rows; r++) {
        const real *s = a->x + r * N;
        if (a->s) {
            layer_norm_add(a->s + r * N, s, a->residual + r * N, N);
            s = a->s + r * N;
        }
        norm_moments m = norm_moments_of(s, N, a->eps, centred);
        if (centred) vstore_n(a->mean + r, m.mean, 1);
        vstore_n(a->rstd + r, m.rstd, 1);
        real *y = a->y + r * N;
        ptrdiff_t u = 0;
        for (; u + VL <= N; u += VL) layer_norm_apply(y + u, s + u, a->weight ? a->weight + u : NULL, a->bias ? a->bias + u : NULL, &m, VL);
        if (u < N) layer_norm_apply(y + u, s + u, a->weight ? a->weight + u : NULL, a->bias ? a->bias + u : NULL, &m, N - u);
    }
}

static void layer_norm_forward_plain(const layer_norm_rows *a) { layer_norm_forward(a, 0); }
static void layer_norm_forward_centred(const layer_norm_rows *a) { layer_norm_forward(a, 1); }

/* ---------------------------------------------------------------- backward */

/* A row and what is known of it. */
typedef struct {
    const real *dy, *s, *weight;
    vreal mean, rstd;
} layer_norm_row;

/* xhat and g dy of `width` elements. */
FSQ_INLINE vreal layer_norm_hat(const layer_norm_row *row, ptrdiff_t u, ptrdiff_t width) {
    return vmul(vsub(cell_load(row->s + u, width), row->mean), row->rstd);
}
FSQ_INLINE vreal layer_norm_scaled(const layer_norm_row *row, ptrdiff_t u, ptrdiff_t width) {
    vreal d = cell_load(row->dy + u, width);
    return row->weight ? vmul(d, cell_load(row->weight + u, width)) : d;
}

/* y = g xhat + b: dg += dy xhat, db += dy */
FSQ_INLINE void layer_norm_sums(const layer_norm_back_rows *b, const layer_norm_row *row, ptrdiff_t N) {
    for (ptrdiff_t u = 0; u < N; u += VL) {
        ptrdiff_t width = N - u < VL ? N - u : VL;
        vreal d = cell_load(row->dy + u, width);
        if (b->dweight) cell_store(b->dweight + u, vfma(d, layer_norm_hat(row, u, width), cell_load(b->dweight + u, width)), width);
        if (b->dbias) cell_store(b->dbias + u, vadd(cell_load(b->dbias + u, width), d), width);
    }
}

/* xhat = (s - mean) rstd: ds = rstd (g dy - mean(g dy) - xhat mean(g dy xhat)), the second only if centred */
FSQ_INLINE void layer_norm_through(real *dx, const real *ds, const layer_norm_row *row, ptrdiff_t N, const int centred) {
    vreal sum[2] = {vzero(), vzero()}, dot[2] = {vzero(), vzero()};
    ptrdiff_t u = 0;
    for (; u + 2 * VL <= N; u += 2 * VL)
#pragma GCC unroll 2
        for (int v = 0; v < 2; v++) {
            vreal d = layer_norm_scaled(row, u + v * VL, VL);
            if (centred) sum[v] = vadd(sum[v], d);
            dot[v] = vfma(d, layer_norm_hat(row, u + v * VL, VL), dot[v]);
        }
    for (; u < N; u += VL) {
        ptrdiff_t width = N - u < VL ? N - u : VL;
        vreal d = layer_norm_scaled(row, u, width);
        if (centred) sum[0] = vadd(sum[0], d);
        dot[0] = vfma(d, layer_norm_hat(row, u, width), dot[0]);
    }
    vreal mean = vset1(vsum(vadd(sum[0], sum[1])) / (real)N), slope = vset1(vsum(vadd(dot[0], dot[1])) / (real)N);
    for (u = 0; u < N; u += VL) {
        ptrdiff_t width = N - u < VL ? N - u : VL;
        vreal d = layer_norm_scaled(row, u, width);
        if (centred) d = vsub(d, mean);
        d = vmul(row->rstd, vfnma(slope, layer_norm_hat(row, u, width), d));
        cell_store(dx + u, ds ? vadd(d, cell_load(ds + u, width)) : d, width);
    }
}

FSQ_INLINE void layer_norm_backward(const layer_norm_back_rows *b, const int centred) {
    const ptrdiff_t N = b->N;
    if (b->dweight) memset(b->dweight, 0, (size_t)N * sizeof(real));
    if (b->dbias) memset(b->dbias, 0, (size_t)N * sizeof(real));
    for (ptrdiff_t r = 0; r < b->rows; r++) {
        layer_norm_row row = {b->dy + r * N, b->s + r * N, b->weight, vset1(centred ? b->mean[r] : 0), vset1(b->rstd[r])};
        if (b->dx) layer_norm_through(b->dx + r * N, b->ds ? b->ds + r * N : NULL, &row, N, centred);
        if (b->dweight || b->dbias) layer_norm_sums(b, &row, N);
    }
}

static void layer_norm_backward_plain(const layer_norm_back_rows *b) { layer_norm_backward(b, 0); }
static void layer_norm_backward_centred(const layer_norm_back_rows *b) { layer_norm_backward(b, 1); }
