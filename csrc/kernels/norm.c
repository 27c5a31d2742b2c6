/* norm.c - LSTM and GRU with layer norm (Ba et al. 2016), whole rows: what follows the products of ops/recurrent_norm.c, and its derivative.
 *
 *   norm(s) = gain (s - mean(s)) rstd(s) + bias; each cell as in lstm.c and gru.c with the sums norm(W x) + norm(U d h') + biases;
 *   the GRU's n = tanh(norm(W x)_n + b_in + r (norm(U d h')_n + b_hn)); the LSTM's h~ = o tanh(norm(c~))
 *
 * The normalised sums without gain and bias, xhat, are what forward saves: the gates are made of them again. */

static const real norm_eps = (real)1e-5;

/* ---------------------------------------------------------------- forward */

/* xhat of W x and of U d h', one row and block of sums. */
typedef struct { vreal x, h; } norm_pair;

FSQ_INLINE norm_pair norm_sums(const recurrent_row *row, const norm_moments *x, const norm_moments *h, ptrdiff_t N, ptrdiff_t at, ptrdiff_t width) {
    norm_pair hat = {vmul(vsub(cell_load(row->sums + at, width), x->mean), x->rstd), vmul(vsub(cell_load(row->inner + at, width), h->mean), h->rstd)};
    if (row->cache) {
        cell_store(row->cache + at, hat.x, width);
        cell_store(row->cache + N + at, hat.h, width);
    }
    return hat;
}

/* norm(W x) + norm(U d h') + biases */
FSQ_INLINE vreal norm_both(const recurrent_norm *p, norm_pair hat, ptrdiff_t at, ptrdiff_t width) {
    return vfma(hat.x, cell_load(p->ih_weight + at, width), vfma(hat.h, cell_load(p->hh_weight + at, width), cell_load(p->starts + at, width)));
}

FSQ_INLINE void norm_keep(const recurrent_row *row, const norm_moments *x, const norm_moments *h, ptrdiff_t N) {
    if (!row->cache) return;
    vstore_n(row->cache + 2 * N, x->rstd, 1);
    vstore_n(row->cache + 2 * N + 1, h->rstd, 1);
}

static void norm_lstm_forward_rows(const recurrent_step *s) {
    const ptrdiff_t H = s->H, N = 4 * H;
    const recurrent_norm *p = s->norm;
    for (const recurrent_row *row = s->rows; row < s->rows + s->n; row++) {
        norm_moments x = norm_moments_of(row->sums, N, norm_eps, 1), h = norm_moments_of(row->inner, N, norm_eps, 1);
        real *now = row->inner, *out = row->inner + 3 * H;  /* c~ and o take the place of sums that have been read */
        norm_keep(row, &x, &h, N);
        for (ptrdiff_t u = 0; u < H; u += VL) {
            ptrdiff_t width = H - u < VL ? H - u : VL;
            vreal sums[4], before = cell_load(row->c_before + u, width);
#pragma GCC unroll 4
            for (int g = 0; g < 4; g++) sums[g] = norm_both(p, norm_sums(row, &x, &h, N, g * H + u, width), g * H + u, width);
            if (s->peepholes) {
                sums[0] = vfma(cell_load(s->peepholes + u, width), before, sums[0]);
                sums[1] = vfma(cell_load(s->peepholes + H + u, width), before, sums[1]);
            }
            vreal c = vfma(vsigmoid(sums[1]), before, vmul(vsigmoid(sums[0]), vtanh(sums[2])));
            if (s->peepholes) sums[3] = vfma(cell_load(s->peepholes + 2 * H + u, width), c, sums[3]);
            cell_store(row->c + u, row->zone_c ? cell_zone(row->zone_c + u, row->c_before + u, c, width) : c, width);
            cell_store(now + u, c, width);
            cell_store(out + u, vsigmoid(sums[3]), width);
        }
        norm_moments c = norm_moments_of(now, H, norm_eps, 1);
        for (ptrdiff_t u = 0; u < H; u += VL) {
            ptrdiff_t width = H - u < VL ? H - u : VL;
            vreal hat = vmul(vsub(cell_load(now + u, width), c.mean), c.rstd);
            vreal y = vtanh(vfma(hat, cell_load(p->c_weight + u, width), cell_load(p->c_bias + u, width))), hidden = vmul(cell_load(out + u, width), y);
            if (row->hidden) cell_store(row->hidden + u, hidden, width);
            else cell_finish(row, u, width, hidden);
        }
    }
}

static void norm_gru_forward_rows(const recurrent_step *s) {
    const ptrdiff_t H = s->H, N = 3 * H;
    const recurrent_norm *p = s->norm;
    for (const recurrent_row *row = s->rows; row < s->rows + s->n; row++) {
        norm_moments x = norm_moments_of(row->sums, N, norm_eps, 1), h = norm_moments_of(row->inner, N, norm_eps, 1);
        norm_keep(row, &x, &h, N);
        for (ptrdiff_t u = 0; u < H; u += VL) {
            ptrdiff_t width = H - u < VL ? H - u : VL;
            vreal r = vsigmoid(norm_both(p, norm_sums(row, &x, &h, N, u, width), u, width));
            vreal z = vsigmoid(norm_both(p, norm_sums(row, &x, &h, N, H + u, width), H + u, width));
            norm_pair hat = norm_sums(row, &x, &h, N, 2 * H + u, width);
            vreal in = vfma(hat.x, cell_load(p->ih_weight + 2 * H + u, width), cell_load(p->starts + 2 * H + u, width));
            vreal hn = vfma(hat.h, cell_load(p->hh_weight + 2 * H + u, width), cell_load(p->starts + 3 * H + u, width));
            vreal n = vtanh(vfma(r, hn, in)), before = cell_load(row->h_before + u, width);
            cell_finish(row, u, width, vfma(z, vsub(before, n), n));
        }
    }
}

/* ---------------------------------------------------------------- backward */

/* The sum that stands at `at`, made again. */
FSQ_INLINE vreal norm_again(const recurrent_norm *p, const real *cache, ptrdiff_t N, ptrdiff_t at, ptrdiff_t width) {
    return norm_both(p, (norm_pair){cell_load(cache + at, width), cell_load(cache + N + at, width)}, at, width);
}

/* Through norm: ds = rstd (g d - mean(g d) - xhat mean(g d xhat)), d = dL/d(norm(s)), g = gain. */
FSQ_INLINE void norm_derivative(real *ds, const real *d, const real *gain, const real *xhat, real rstd, ptrdiff_t N) {
    vreal sum[2] = {vzero(), vzero()}, dot[2] = {vzero(), vzero()};
    ptrdiff_t u = 0;
    for (; u + 2 * VL <= N; u += 2 * VL)
#pragma GCC unroll 2
        for (int v = 0; v < 2; v++) {
            vreal gd = vmul(vload(gain + u + v * VL), vload(d + u + v * VL));
            sum[v] = vadd(sum[v], gd);
            dot[v] = vfma(gd, vload(xhat + u + v * VL), dot[v]);
        }
    for (; u < N; u += VL) {
        ptrdiff_t width = N - u < VL ? N - u : VL;
        vreal gd = vmul(cell_load(gain + u, width), cell_load(d + u, width));
        sum[0] = vadd(sum[0], gd);
        dot[0] = vfma(gd, cell_load(xhat + u, width), dot[0]);
    }
    vreal mean = vset1(vsum(vadd(sum[0], sum[1])) / (real)N), slope = vset1(vsum(vadd(dot[0], dot[1])) / (real)N), scale = vset1(rstd);
    for (u = 0; u < N; u += VL) {
        ptrdiff_t width = N - u < VL ? N - u : VL;
        vreal gd = vmul(cell_load(gain + u, width), cell_load(d + u, width));
        cell_store(ds + u, vmul(scale, vfnma(slope, cell_load(xhat + u, width), vsub(gd, mean))), width);
    }
}

/* inner (7 H): dL/d(sums) (4 H), where i, f, g, o are first; dL/d(norm(c~)), xhat of c~, c~. */
static void norm_lstm_backward_rows(const recurrent_back *s) {
    const vreal one = vset1(1);
    const ptrdiff_t H = s->H, N = 4 * H;
    const recurrent_norm *p = s->norm;
    const real *peephole = s->peepholes;
    for (const recurrent_back_row *row = s->rows; row < s->rows + s->n; row++) {
        real *gates = row->inner, *dnorm = gates + 4 * H, *hats = gates + 5 * H, *cells = gates + 6 * H, *dcell = row->dsx;
        for (ptrdiff_t u = 0; u < H; u += VL) {
            ptrdiff_t width = H - u < VL ? H - u : VL;
            vreal sums[4], before = cell_load(row->c_before + u, width);
#pragma GCC unroll 4
            for (int g = 0; g < 4; g++) sums[g] = norm_again(p, row->cache, N, g * H + u, width);
            if (peephole) {
                sums[0] = vfma(cell_load(peephole + u, width), before, sums[0]);
                sums[1] = vfma(cell_load(peephole + H + u, width), before, sums[1]);
            }
            vreal i = vsigmoid(sums[0]), f = vsigmoid(sums[1]), g = vtanh(sums[2]), c = vfma(f, before, vmul(i, g));
            if (peephole) sums[3] = vfma(cell_load(peephole + 2 * H + u, width), c, sums[3]);
            cell_store(gates + u, i, width);
            cell_store(gates + H + u, f, width);
            cell_store(gates + 2 * H + u, g, width);
            cell_store(gates + 3 * H + u, vsigmoid(sums[3]), width);
            cell_store(cells + u, c, width);
        }
        norm_moments c = norm_moments_of(cells, H, norm_eps, 1);
        for (ptrdiff_t u = 0; u < H; u += VL) {
            ptrdiff_t width = H - u < VL ? H - u : VL;
            vreal hat = vmul(vsub(cell_load(cells + u, width), c.mean), c.rstd), o = cell_load(gates + 3 * H + u, width);
            vreal y = vtanh(vfma(hat, cell_load(p->c_weight + u, width), cell_load(p->c_bias + u, width))), dh = cell_upstream(row, u, width);
            /* h~ = o tanh(norm(c~)) */
            cell_store(hats + u, hat, width);
            cell_store(dnorm + u, vmul(vmul(dh, o), vfnma(y, y, one)), width);
            cell_store(gates + 3 * H + u, vmul(vmul(dh, y), vmul(o, vsub(one, o))), width);
            if (row->hidden) cell_store(row->hidden + u, vmul(o, y), width);
        }
        real rstd[VL];
        vstore(rstd, c.rstd);
        norm_derivative(dcell, dnorm, p->c_weight, hats, rstd[0], H);
        for (ptrdiff_t u = 0; u < H; u += VL) {
            ptrdiff_t width = H - u < VL ? H - u : VL;
            vreal before = cell_load(row->c_before + u, width), do_sum = cell_load(gates + 3 * H + u, width);
            vreal i = cell_load(gates + u, width), f = cell_load(gates + H + u, width), g = cell_load(gates + 2 * H + u, width);
            vreal dc = row->cut ? vzero() : cell_load(row->dc + u, width), dc_before = vzero();
            if (row->dcell) dc = vadd(dc, cell_load(row->dcell + u, width));
            /* c = m c' + (1 - m) c~ */
            if (row->zone_c) {
                vreal m = cell_load(row->zone_c + u, width);
                dc_before = vmul(m, dc);
                dc = vmul(vsub(one, m), dc);
            }
            dc = vadd(dc, cell_load(dcell + u, width));
            if (peephole) dc = vfma(do_sum, cell_load(peephole + 2 * H + u, width), dc);
            /* c~ = f c' + i g; i, f = sigmoid(sum), g = tanh(sum): 1 - g^2 */
            vreal di_sum = vmul(vmul(dc, g), vmul(i, vsub(one, i))), df_sum = vmul(vmul(dc, before), vmul(f, vsub(one, f)));
            dc_before = vfma(dc, f, dc_before);
            if (peephole)
                dc_before = vfma(di_sum, cell_load(peephole + u, width), vfma(df_sum, cell_load(peephole + H + u, width), dc_before));
            cell_store(row->dc + u, dc_before, width);
            cell_store(gates + u, di_sum, width);
            cell_store(gates + H + u, df_sum, width);
            cell_store(gates + 2 * H + u, vmul(vmul(dc, i), vfnma(g, g, one)), width);
        }
        norm_derivative(row->dsx, gates, p->ih_weight, row->cache, row->cache[2 * N], N);
        norm_derivative(row->dsh, gates, p->hh_weight, row->cache + N, row->cache[2 * N + 1], N);
    }
}

/* inner (6 H): dL/d(norm(W x)), dL/d(norm(U d h')), which differ in n. */
static void norm_gru_backward_rows(const recurrent_back *s) {
    const vreal one = vset1(1);
    const ptrdiff_t H = s->H, N = 3 * H;
    const recurrent_norm *p = s->norm;
    for (const recurrent_back_row *row = s->rows; row < s->rows + s->n; row++) {
        real *of_x = row->inner, *of_h = row->inner + N;
        for (ptrdiff_t u = 0; u < H; u += VL) {
            ptrdiff_t width = H - u < VL ? H - u : VL;
            const ptrdiff_t at = 2 * H + u;
            vreal r = vsigmoid(norm_again(p, row->cache, N, u, width)), z = vsigmoid(norm_again(p, row->cache, N, H + u, width));
            vreal in = vfma(cell_load(row->cache + at, width), cell_load(p->ih_weight + at, width), cell_load(p->starts + at, width));
            vreal hn = vfma(cell_load(row->cache + N + at, width), cell_load(p->hh_weight + at, width), cell_load(p->starts + H + at, width));
            vreal n = vtanh(vfma(r, hn, in)), dh = cell_upstream(row, u, width);
            /* as gru_backward_units */
            vreal dz = vmul(dh, vsub(cell_load(row->h_before + u, width), n)), dn = vmul(dh, vsub(one, z));
            cell_store(row->direct + u, vfma(dh, z, cell_load(row->direct + u, width)), width);
            vreal din = vmul(dn, vfnma(n, n, one)), dr = vmul(din, hn);
            vreal dr_sum = vmul(dr, vmul(r, vsub(one, r))), dz_sum = vmul(dz, vmul(z, vsub(one, z)));
            cell_store(of_x + u, dr_sum, width);
            cell_store(of_x + H + u, dz_sum, width);
            cell_store(of_x + at, din, width);
            cell_store(of_h + u, dr_sum, width);
            cell_store(of_h + H + u, dz_sum, width);
            cell_store(of_h + at, vmul(din, r), width);
        }
        norm_derivative(row->dsx, of_x, p->ih_weight, row->cache, row->cache[2 * N], N);
        norm_derivative(row->dsh, of_h, p->hh_weight, row->cache + N, row->cache[2 * N + 1], N);
    }
}

/* dgain (n) += d x, dbias += d, db += d; NULL: not wanted. */
static void norm_backward_row(real *dgain, real *dbias, real *db, const real *d, const real *x, ptrdiff_t n) {
    for (ptrdiff_t u = 0; u < n; u += VL) {
        ptrdiff_t width = n - u < VL ? n - u : VL;
        vreal v = cell_load(d + u, width);
        cell_store(dgain + u, vfma(v, cell_load(x + u, width), cell_load(dgain + u, width)), width);
        if (dbias) cell_store(dbias + u, vadd(cell_load(dbias + u, width), v), width);
        if (db) cell_store(db + u, vadd(cell_load(db + u, width), v), width);
    }
}
