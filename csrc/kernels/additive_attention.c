/* additive_attention.c - scores s_ij = u . tanh(q_i + k_j), their softmax, and the gradients (Bahdanau et al. 2015).
 *
 * Of a pair of a query and a key nothing is stored but its score. exp(2q) and exp(2k) are taken once for each query and each key, and
 *
 *   h = 1 / (1 + exp(2q) exp(2k)) - 1/2 = -tanh(q + k) / 2,   1 - tanh^2 = 4 (1/4 - h^2),
 *
 * so a pair costs a multiply-add and a reciprocal for each unit, a third of a tanh. Its error is that of a tanh in absolute terms, about
 * two units of the last place of 1: all that a sum of D of them can keep. Rows with a unit beyond additive_range, whose exponentials or
 * their product would overflow, or that holds a NaN, are "far": their pairs go through tanh itself, one by one, those that are hidden not
 * at all. So do the pairs of a single query, for which the exponentials would not pay. Bound by FLOP.
 *
 * A panel holds exponentials by vectors of units: unit d of row r at [(d / VL stride + r) VL + d % VL], so that the keys of a tile lie
 * side by side. stride is at least the number of rows. */

#if defined FSQ_F32
#define ADDITIVE_RANGE 20.0f                                /* exp(4 * 20) is 5.5e34, and its reciprocal still normal */
#else
#define ADDITIVE_RANGE 170.0
#endif

#if defined FSQ_ISA_AVX512 || defined __aarch64__
enum { additive_rows = 4 };                                 /* queries at a time backwards: 3 x 4 + 1 sums and 4 exponentials in 32 registers */
#else
enum { additive_rows = 2 };
#endif

/* 1 / y - 1/2 for 1 <= y < 2^126 */
FSQ_INLINE vreal additive_half(vreal y) {
#if FSQ_HAS_RECIPROCAL
    vreal r = vreciprocal(y);
    return vfma(r, vfnma(y, r, vset1(2)), vset1((real)-0.5)); /* Newton's step */
#else
    return vsub(vdiv(vset1(1), y), vset1((real)0.5));
#endif
}

/* flags[r] = whether row r of x (rows, D) has an element beyond `limit`, or a NaN. */
static void additive_beyond(unsigned char *flags, const real *x, ptrdiff_t rows, ptrdiff_t D, real limit) {
    for (ptrdiff_t r = 0; r < rows; r++, x += D) {
        vmask beyond = vlt(vzero(), vzero());
        for (ptrdiff_t d = 0; d < D; d += VL) {
            vreal v = D - d < VL ? vload_n(x + d, D - d) : vload(x + d);
            beyond = vor_m(beyond, vor_m(vgt(vabs(v), vset1(limit)), visnan(v)));
        }
        flags[r] = (unsigned char)vany(beyond);
    }
}

/* The panel of x (rows, D); ones, so that they do no harm, for rows that are far and for units past D. */
static void additive_panel(real *panel, ptrdiff_t stride, const real *x, const unsigned char *far, ptrdiff_t rows, ptrdiff_t D) {
    for (ptrdiff_t r = 0; r < rows; r++, x += D)
        for (ptrdiff_t d = 0; d < D; d += VL) {
            vreal v = far[r] ? vzero() : D - d < VL ? vload_n(x + d, D - d) : vload(x + d);
            vstore(panel + (d / VL * stride + r) * VL, vmath_exp(vadd(v, v)));
        }
}

/* ---------------------------------------------------------------- scores */

/* The scores of one query and `keys` keys that lie side by side. */
FSQ_INLINE void additive_scores_tile(real *scores, const real *q, ptrdiff_t q_stride, const real *k, ptrdiff_t k_stride, const real *u, ptrdiff_t D,
                                     const int keys) {
    vreal sum[VL];
#pragma GCC unroll 16
    for (int j = 0; j < VL; j++) sum[j] = vzero();
    for (ptrdiff_t d = 0; d < D; d += VL, q += q_stride * VL, k += k_stride * VL) {
        vreal x = vload(q), w = vload(u + d);
#pragma GCC unroll 16
        for (int j = 0; j < keys; j++) sum[j] = vfma(w, additive_half(vfma(x, vload(k + j * VL), vset1(1))), sum[j]);
    }
    vtranspose(sum);
#pragma GCC unroll 4
    for (int n = VL / 2; n > 0; n /= 2)
#pragma GCC unroll 8
        for (int j = 0; j < n; j++) sum[j] = vadd(sum[j], sum[j + n]);
    vstore_n(scores, vmul(vset1(-2), sum[0]), keys);
}

#define ADDITIVE_TILE(n)                                                                                                           \
    case (n):                                                                                                                      \
        for (ptrdiff_t i = 0; i < Tq; i++)                                                                                         \
            additive_scores_tile(scores + i * scores_row + j, q + i * VL, q_stride, k + j * VL, k_stride, u, D, (n) < VL ? (n) : VL); \
        break;

/* scores (Tq, Tk), rows scores_row apart, from the panels q and k; u is padded with zeros to whole vectors. */
static void additive_scores(real *scores, ptrdiff_t scores_row, const real *q, ptrdiff_t q_stride, const real *k, ptrdiff_t k_stride, const real *u,
                            ptrdiff_t Tq, ptrdiff_t Tk, ptrdiff_t D) {
    int keys = VL;
    for (ptrdiff_t j = 0; j < Tk; j += keys) {
        while (keys > Tk - j) keys /= 2;
        switch (keys) { ADDITIVE_TILE(1) ADDITIVE_TILE(2) ADDITIVE_TILE(4) ADDITIVE_TILE(8) ADDITIVE_TILE(16) }
    }
}

/* u . tanh(q + k_j) for `keys` rows of k (D apart). */
FSQ_INLINE void additive_scores_few(real *scores, const real *q, const real *k, const real *u, ptrdiff_t D, const int keys) {
    vreal sum[4];
#pragma GCC unroll 4
    for (int j = 0; j < keys; j++) sum[j] = vzero();
    ptrdiff_t d = 0;
    for (; d + VL <= D; d += VL) {
        vreal x = vload(q + d), w = vload(u + d);
#pragma GCC unroll 4
        for (int j = 0; j < keys; j++) sum[j] = vfma(w, vtanh(vadd(x, vload(k + j * D + d))), sum[j]);
    }
    if (d < D) {
        vreal x = vload_n(q + d, D - d), w = vload_n(u + d, D - d);
#pragma GCC unroll 4
        for (int j = 0; j < keys; j++) sum[j] = vfma(w, vtanh(vadd(x, vload_n(k + j * D + d, D - d))), sum[j]);
    }
#pragma GCC unroll 4
    for (int j = 0; j < keys; j++) scores[j] = vsum(sum[j]);
}

/* The scores of one query and Tk keys by tanh itself. */
static void additive_scores_far(real *scores, const real *q, const real *k, const real *u, ptrdiff_t Tk, ptrdiff_t D) {
    ptrdiff_t j = 0;
    for (; j + 4 <= Tk; j += 4) additive_scores_few(scores + j, q, k + j * D, u, D, 4);
    for (; j < Tk; j++) additive_scores_few(scores + j, q, k + j * D, u, D, 1);
}

/* ---------------------------------------------------------------- softmax */

/* Scores (n) to weights: `bias` is added, hidden keys and those from n to Tk get 0, whatever their score; visible, bias: NULL or one for each key,
 * mask_key apart. */
static void additive_weights(real *w, const unsigned char *visible, const real *bias, ptrdiff_t mask_key, ptrdiff_t n, ptrdiff_t Tk) {
    const real hidden = -(real)INFINITY;
    if (visible)
        for (ptrdiff_t j = 0; j < n; j++) w[j] = visible[j * mask_key] ? w[j] : hidden;
    if (bias)
        for (ptrdiff_t j = 0; j < n; j++) w[j] = bias[j * mask_key] == hidden ? hidden : w[j] + bias[j * mask_key];
    softmax_forward(w, w, 1, n);
    for (ptrdiff_t j = n; j < Tk; j++) w[j] = 0;
}

/* dL/dw (n) in ds to dL/ds = w (dw - sum(w dw)), where w is not 0; zeros where it is, and from n to Tk. */
static void additive_weights_backward(real *ds, const real *w, ptrdiff_t n, ptrdiff_t Tk) {
    vreal sum = vzero(), zero = vzero();
    for (ptrdiff_t j = 0; j < n; j += VL) {
        ptrdiff_t width = n - j < VL ? n - j : VL;
        vreal p = vload_n(w + j, width);
        sum = vselect(veq(p, zero), sum, vfma(p, vload_n(ds + j, width), sum));
    }
    vreal mean = vset1(vsum(sum));
    for (ptrdiff_t j = 0; j < n; j += VL) {
        ptrdiff_t width = n - j < VL ? n - j : VL;
        vreal p = vload_n(w + j, width);
        vstore_n(ds + j, vselect(veq(p, zero), zero, vmul(p, vsub(vload_n(ds + j, width), mean))), width);
    }
    for (ptrdiff_t j = n; j < Tk; j++) ds[j] = 0;
}

/* ---------------------------------------------------------------- gradients of scores */

/* One vector of units, `rows` queries: column (Tk vectors) += ds (1/4 - h^2) over the queries, dq[r] += the same over the keys, du[r] += ds h. */
FSQ_INLINE void additive_backward_rows(vreal *dq, vreal *du, real *column, const real *q, const real *k, const real *ds, ptrdiff_t ds_row, ptrdiff_t Tk,
                                       const int rows) {
    vreal x[additive_rows];
#pragma GCC unroll 4
    for (int r = 0; r < rows; r++) {
        x[r] = vload(q + r * VL);
        dq[r] = vzero();
    }
    for (ptrdiff_t j = 0; j < Tk; j++) {
        vreal y = vload(k + j * VL), dk = vload(column + j * VL);
#pragma GCC unroll 4
        for (int r = 0; r < rows; r++) {
            vreal h = additive_half(vfma(x[r], y, vset1(1))), d = vset1(ds[r * ds_row + j]);
            vreal slope = vfnma(h, h, vset1((real)0.25));
            dq[r] = vfma(d, slope, dq[r]);
            dk = vfma(d, slope, dk);
            du[r] = vfma(d, h, du[r]);
        }
        vstore(column + j * VL, dk);
    }
}

#define ADDITIVE_ROWS(n)                                                                                                           \
    case (n): additive_backward_rows(sums, by_row, column, q + i * VL, k, ds + i * ds_row, ds_row, Tk, (n) < additive_rows ? (n) : additive_rows); break;

/* Units [from, to) of dq (Tq, D), dk (Tk, D) and du (D), `from` a multiple of VL, from ds (Tq, Tk) and the panels q and k of all units.
 * column: scratch of Tk vectors. */
static void additive_backward(real *dq, real *dk, real *du, real *column, const real *q, ptrdiff_t q_stride, const real *k, ptrdiff_t k_stride,
                              const real *u, const real *ds, ptrdiff_t ds_row, ptrdiff_t Tq, ptrdiff_t Tk, ptrdiff_t D, ptrdiff_t from, ptrdiff_t to) {
    q += from * q_stride, k += from * k_stride;
    for (ptrdiff_t d = from; d < to; d += VL, q += q_stride * VL, k += k_stride * VL) {
        ptrdiff_t width = to - d < VL ? to - d : VL;
        vreal scale = vmul(vset1(4), vload(u + d)), by_row[additive_rows], sums[additive_rows];
        for (int r = 0; r < additive_rows; r++) by_row[r] = vzero();
        for (ptrdiff_t j = 0; j < Tk; j++) vstore(column + j * VL, vzero());
        for (ptrdiff_t i = 0; i < Tq; i += additive_rows) {
            int rows = Tq - i < additive_rows ? (int)(Tq - i) : additive_rows;
            switch (rows) { ADDITIVE_ROWS(1) ADDITIVE_ROWS(2) ADDITIVE_ROWS(3) ADDITIVE_ROWS(4) }
            for (int r = 0; r < rows; r++) vstore_n(dq + (i + r) * D + d, vmul(scale, sums[r]), width);
        }
        for (ptrdiff_t j = 0; j < Tk; j++) vstore_n(dk + j * D + d, vmul(scale, vload(column + j * VL)), width);
        for (int r = 1; r < additive_rows; r++) by_row[0] = vadd(by_row[0], by_row[r]);
        vstore_n(du + d, vmul(vset1(-2), by_row[0]), width);
    }
}

/* The vector at d, `width` units of it, for `keys` keys: dq and du are added to, dk is written, or with `add` added to. */
FSQ_INLINE void additive_backward_vector(real *dq, real *const *dk, real *du, const real *q, const real *const *k, const real *u, const vreal *ds,
                                         ptrdiff_t d, const ptrdiff_t width, const int keys, int add) {
    vreal x = width == VL ? vload(q + d) : vload_n(q + d, width), w = width == VL ? vload(u + d) : vload_n(u + d, width);
    vreal by_key = width == VL ? vload(du + d) : vload_n(du + d, width), sum = width == VL ? vload(dq + d) : vload_n(dq + d, width);
#pragma GCC unroll 4
    for (int j = 0; j < keys; j++) {
        vreal t = vtanh(vadd(x, width == VL ? vload(k[j] + d) : vload_n(k[j] + d, width)));
        vreal g = vmul(vmul(ds[j], w), vfnma(t, t, vset1(1)));
        sum = vadd(sum, g);
        by_key = vfma(ds[j], t, by_key);
        if (width == VL) vstore(dk[j] + d, add ? vadd(vload(dk[j] + d), g) : g);
        else vstore_n(dk[j] + d, add ? vadd(vload_n(dk[j] + d, width), g) : g, width);
    }
    if (width == VL) {
        vstore(dq + d, sum);
        vstore(du + d, by_key);
    } else {
        vstore_n(dq + d, sum, width);
        vstore_n(du + d, by_key, width);
    }
}

FSQ_INLINE void additive_backward_few(real *dq, real *const *dk, real *du, const real *q, const real *const *k, const real *u, const real *ds,
                                      ptrdiff_t n, const int keys, int add) {
    vreal by[4];
#pragma GCC unroll 4
    for (int j = 0; j < keys; j++) by[j] = vset1(ds[j]);
    ptrdiff_t d = 0;
    for (; d + VL <= n; d += VL) additive_backward_vector(dq, dk, du, q, k, u, by, d, VL, keys, add);
    if (d < n) additive_backward_vector(dq, dk, du, q, k, u, by, d, n - d, keys, add);
}

/* n units of one query's dq and du, to which is added, and of dk for Tk keys (D apart), by tanh itself. Where ds is 0 nothing is read, and dk is
 * 0 or, with `add`, stays. */
static void additive_backward_far(real *dq, real *dk, real *du, const real *q, const real *k, const real *u, const real *ds, ptrdiff_t Tk, ptrdiff_t D,
                                  ptrdiff_t n, int add) {
    real *to[4], by[4];
    const real *from[4];
    int waiting = 0;
    for (ptrdiff_t j = 0; j < Tk; j++) {
        if (ds[j] != 0) {
            to[waiting] = dk + j * D, from[waiting] = k + j * D, by[waiting] = ds[j];
            if (++waiting == 4) additive_backward_few(dq, to, du, q, from, u, by, n, 4, add), waiting = 0;
        } else if (!add) {
            memset(dk + j * D, 0, (size_t)n * sizeof(real));
        }
    }
    for (int j = 0; j < waiting; j++) additive_backward_few(dq, to + j, du, q, from + j, u, by + j, n, 1, add);
}
