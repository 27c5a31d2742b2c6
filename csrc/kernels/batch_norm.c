/* batch_norm.c - y = weight (x - mean) / sqrt(variance + eps) + bias, moments of each channel over the batch, and its derivative.
 *
 * Ioffe & Szegedy 2015. Bound by the bytes of x: a channel is read for its mean, its variance and its result. Channels are last (L = 1)
 * and a lane each, or have planes of L elements. A channel's sums add up sample after sample: in one chain, or in four chains for each
 * lane where there are planes. */

/* Sums over the batch of (x - mean), its square, dy or dy (x - mean), for VL channels or one. */
enum { batch_norm_plain, batch_norm_square, batch_norm_product };

FSQ_INLINE vreal batch_norm_term(vreal a, vreal b, vreal mean, vreal sum, const int kind) {
    vreal d = vsub(b, mean);
    return kind == batch_norm_plain ? vadd(sum, a) : vfma(kind == batch_norm_square ? d : a, d, sum);
}

/* The sums for channels [c, c + width), L = 1; a and b start at channel 0 of sample 0, `mean` is theirs. */
FSQ_INLINE vreal batch_norm_lanes(const real *a, const real *b, vreal mean, ptrdiff_t N, ptrdiff_t C, ptrdiff_t c, ptrdiff_t width, const int kind) {
    vreal sum = vzero();
    for (ptrdiff_t n = 0; n < N; n++) sum = batch_norm_term(cell_load(a + n * C + c, width), cell_load(b + n * C + c, width), mean, sum, kind);
    return sum;
}

/* The sum for one channel in planes of L, `apart` from sample to sample. */
FSQ_INLINE vreal batch_norm_plane(const real *a, const real *b, vreal mean, ptrdiff_t N, ptrdiff_t apart, ptrdiff_t L, const int kind) {
    vreal sum[4] = {vzero(), vzero(), vzero(), vzero()};
    real means[VL];
    vstore(means, mean);
    for (ptrdiff_t n = 0; n < N; n++, a += apart, b += apart) {
        ptrdiff_t i = 0;
        for (; i + 4 * VL <= L; i += 4 * VL)
#pragma GCC unroll 4
            for (int v = 0; v < 4; v++) sum[v] = batch_norm_term(vload(a + i + v * VL), vload(b + i + v * VL), mean, sum[v], kind);
        for (; i < L; i += VL) {
            ptrdiff_t width = L - i < VL ? L - i : VL;
            sum[0] = batch_norm_term(cell_load(a + i, width), cell_load(b + i, width), cell_load(means, width), sum[0], kind);  /* no lane past L counts */
        }
    }
    return vset1(vsum(vadd(vadd(sum[0], sum[1]), vadd(sum[2], sum[3]))));
}

/* What the width channels from c have in common: one channel with its plane, or a lane each. */
typedef struct {
    ptrdiff_t c, width;
    int planes;
} batch_norm_channels;

FSQ_INLINE batch_norm_channels batch_norm_next(const batch_norm_call *a, ptrdiff_t c, ptrdiff_t to) {
    int planes = a->L != 1;
    return (batch_norm_channels){c, planes ? 1 : to - c < VL ? to - c : VL, planes};
}

FSQ_INLINE vreal batch_norm_sum(const batch_norm_call *a, const real *x, const real *y, vreal mean, const batch_norm_channels *s, const int kind) {
    if (!s->planes) return batch_norm_lanes(x, y, mean, a->N, a->C, s->c, s->width, kind);
    return batch_norm_plane(x + s->c * a->L, y + s->c * a->L, mean, a->N, a->C * a->L, a->L, kind);
}

/* One number for each of the channels, or `otherwise` for a NULL. */
FSQ_INLINE vreal batch_norm_get(const real *x, const batch_norm_channels *s, real otherwise) {
    return !x ? vset1(otherwise) : s->planes ? vset1(x[s->c]) : cell_load(x + s->c, s->width);
}
FSQ_INLINE void batch_norm_set(real *x, vreal v, const batch_norm_channels *s) { cell_store(x + s->c, v, s->width); }

FSQ_INLINE vreal batch_norm_rstd(const batch_norm_call *a, vreal variance) { return vdiv(vset1(1), vsqrt(vadd(variance, vset1(a->eps)))); }

/* to = slope (from - mean) + dy_slope dy + shift, over all elements of the channels. dy may be NULL. */
FSQ_INLINE void batch_norm_apply(const batch_norm_call *a, real *to, const real *from, const real *dy, vreal slope, vreal mean, vreal dy_slope,
                                 vreal shift, const batch_norm_channels *s) {
    const ptrdiff_t run = s->planes ? a->L : s->width, apart = a->C * a->L;
    ptrdiff_t start = s->c * a->L;
    for (ptrdiff_t n = 0; n < a->N; n++, start += apart)
        for (ptrdiff_t i = start; i < start + run; i += VL) {
            ptrdiff_t width = start + run - i < VL ? start + run - i : VL;
            vreal v = vfma(slope, vsub(cell_load(from + i, width), mean), shift);
            cell_store(to + i, dy ? vfma(dy_slope, cell_load(dy + i, width), v) : v, width);
        }
}

static void batch_norm_forward(const batch_norm_call *a, ptrdiff_t from, ptrdiff_t to) {
    const vreal count = vset1((real)(a->N * a->L));
    for (batch_norm_channels s; from < to; from += s.width) {
        s = batch_norm_next(a, from, to);
        if (!a->given) {
            vreal mean = vdiv(batch_norm_sum(a, a->x, a->x, vzero(), &s, batch_norm_plain), count);
            batch_norm_set(a->mean, mean, &s);
            batch_norm_set(a->variance, vdiv(batch_norm_sum(a, a->x, a->x, mean, &s, batch_norm_square), count), &s);
        }
        vreal slope = vmul(batch_norm_rstd(a, batch_norm_get(a->variance, &s, 0)), batch_norm_get(a->weight, &s, 1));
        batch_norm_apply(a, a->y, a->x, NULL, slope, batch_norm_get(a->mean, &s, 0), vzero(), batch_norm_get(a->bias, &s, 0), &s);
    }
}

/* dweight = sum(dy xhat), dbias = sum(dy). xhat = (x - mean) rstd, moments of the batch:
 * dx = weight rstd (dy - dbias / count - xhat dweight / count); given moments: dx = weight rstd dy. */
static void batch_norm_backward(const batch_norm_call *a, ptrdiff_t from, ptrdiff_t to) {
    const vreal count = vset1((real)(a->N * a->L));
    for (batch_norm_channels s; from < to; from += s.width) {
        s = batch_norm_next(a, from, to);
        vreal mean = batch_norm_get(a->mean, &s, 0), rstd = batch_norm_rstd(a, batch_norm_get(a->variance, &s, 0)), none = vset1((real)-0.0);
        vreal dbias = batch_norm_sum(a, a->dy, a->x, mean, &s, batch_norm_plain);
        vreal dweight = vmul(batch_norm_sum(a, a->dy, a->x, mean, &s, batch_norm_product), rstd);
        if (a->dbias) batch_norm_set(a->dbias, dbias, &s);
        if (a->dweight) batch_norm_set(a->dweight, dweight, &s);
        if (!a->dx) continue;
        vreal slope = vmul(rstd, batch_norm_get(a->weight, &s, 1)), through = vneg(vdiv(vmul(slope, vmul(dweight, rstd)), count));
        if (a->given) batch_norm_apply(a, a->dx, a->dy, NULL, slope, vzero(), vzero(), none, &s);
        else batch_norm_apply(a, a->dx, a->x, a->dy, through, mean, slope, vneg(vdiv(vmul(slope, dbias), count)), &s);
    }
}
