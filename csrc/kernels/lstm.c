/* lstm.c - the cell of the LSTM (Hochreiter & Schmidhuber 1997; forget gate and peepholes, Gers 2000), and its derivative. Included by
 * recurrent.c.
 *
 *   i, f, o = sigmoid(sum), g = tanh(sum); c~ = f c' + i g; h~ = o tanh(c~); peepholes: i and f see p c', o sees p c~ */

/* The gates of one row and block, and c_t: on return sums[0] = c~, sums[3] = o. */
FSQ_INLINE void lstm_gates(vreal *sums, const recurrent_step *s, const recurrent_row *row, ptrdiff_t unit, ptrdiff_t units) {
    const real *peephole = s->peepholes ? s->peepholes + unit : NULL;
    vreal before = cell_load(row->c_before + unit, units);
    if (peephole) {
        sums[0] = vfma(cell_load(peephole, units), before, sums[0]);
        sums[1] = vfma(cell_load(peephole + s->H, units), before, sums[1]);
    }
    vreal i = vsigmoid(sums[0]), f = vsigmoid(sums[1]), g = vtanh(sums[2]), now = vfma(f, before, vmul(i, g));
    if (peephole) sums[3] = vfma(cell_load(peephole + 2 * s->H, units), now, sums[3]);
    vreal o = vsigmoid(sums[3]);
    cell_store(row->c + unit, row->zone_c ? cell_zone(row->zone_c + unit, row->c_before + unit, now, units) : now, units);
    if (row->cache) {
        real *cache = row->cache + unit;
        cell_store(cache, i, units);
        cell_store(cache + s->H, f, units);
        cell_store(cache + 2 * s->H, g, units);
        cell_store(cache + 3 * s->H, o, units);
    }
    sums[0] = now;
    sums[3] = o;
}

/* h~ = o tanh(c~) */
FSQ_INLINE void lstm_hidden(const vreal *sums, const recurrent_row *row, ptrdiff_t unit, ptrdiff_t units) {
    vreal h = vmul(sums[3], vtanh(sums[0]));
    if (row->hidden) cell_store(row->hidden + unit, h, units);
    else cell_finish(row, unit, units, h);
}

/* o tanh(c~) of one row, from what forward saved. */
static void lstm_hidden_again(real *hidden, const recurrent_back_row *row, ptrdiff_t H) {
    for (ptrdiff_t u = 0; u < H; u += VL) {
        ptrdiff_t n = H - u < VL ? H - u : VL;
        const real *cache = row->cache + u;
        vreal ig = vmul(cell_load(cache, n), cell_load(cache + 2 * H, n));
        cell_store(hidden + u, vmul(cell_load(cache + 3 * H, n), vtanh(vfma(cell_load(cache + H, n), cell_load(row->c_before + u, n), ig))), n);
    }
}

static void lstm_backward_units(const recurrent_back *s, ptrdiff_t from, ptrdiff_t to) {
    const vreal one = vset1(1);
    const ptrdiff_t H = s->H;
    for (const recurrent_back_row *row = s->rows; row < s->rows + s->n; row++)
        for (ptrdiff_t u = from; u < to; u += VL) {
            ptrdiff_t n = to - u < VL ? to - u : VL;
            const real *cache = row->cache + u;
            vreal i = cell_load(cache, n), f = cell_load(cache + H, n), g = cell_load(cache + 2 * H, n), o = cell_load(cache + 3 * H, n);
            vreal before = cell_load(row->c_before + u, n), now = vfma(f, before, vmul(i, g)), tanh_c = vtanh(now);
            vreal dh = cell_upstream(row, u, n), dc = row->cut ? vzero() : cell_load(row->dc + u, n), dc_before = vzero();
            if (row->dcell) dc = vadd(dc, cell_load(row->dcell + u, n));
            /* c = m c' + (1 - m) c~ */
            if (row->zone_c) {
                vreal m = cell_load(row->zone_c + u, n);
                dc_before = vmul(m, dc);
                dc = vmul(vsub(one, m), dc);
            }
            /* h~ = o tanh(c~); o = sigmoid(sum): o (1 - o); peephole: the sum has p_o c~ */
            vreal do_sum = vmul(vmul(dh, tanh_c), vmul(o, vsub(one, o)));
            dc = vfma(vmul(dh, o), vfnma(tanh_c, tanh_c, one), dc);
            if (s->peepholes) dc = vfma(do_sum, cell_load(s->peepholes + 2 * H + u, n), dc);
            /* c~ = f c' + i g; i, f = sigmoid(sum), g = tanh(sum): 1 - g^2 */
            vreal di_sum = vmul(vmul(dc, g), vmul(i, vsub(one, i))), df_sum = vmul(vmul(dc, before), vmul(f, vsub(one, f)));
            dc_before = vfma(dc, f, dc_before);
            /* peepholes: the sums of i and f have p c' */
            if (s->peepholes)
                dc_before = vfma(di_sum, cell_load(s->peepholes + u, n), vfma(df_sum, cell_load(s->peepholes + H + u, n), dc_before));
            cell_store(row->dc + u, dc_before, n);
            cell_store(row->dsx + u, di_sum, n);
            cell_store(row->dsx + H + u, df_sum, n);
            cell_store(row->dsx + 2 * H + u, vmul(vmul(dc, i), vfnma(g, g, one)), n);
            cell_store(row->dsx + 3 * H + u, do_sum, n);
        }
}

/* dp (3, H) += the sums over the rows, last to first, of di_sum c', df_sum c' and do_sum c~, for units [from, to). */
static void lstm_backward_peepholes(real *dp, const recurrent_back_row *rows, ptrdiff_t count, ptrdiff_t H, ptrdiff_t from, ptrdiff_t to) {
    for (ptrdiff_t u = from; u < to; u += VL) {
        ptrdiff_t n = to - u < VL ? to - u : VL;
        vreal sum[3];
        for (int p = 0; p < 3; p++) sum[p] = cell_load(dp + p * H + u, n);
        for (const recurrent_back_row *row = rows + count; row-- > rows;) {
            const real *cache = row->cache + u, *ds = row->dsx + u;
            vreal before = cell_load(row->c_before + u, n);
            vreal now = vfma(cell_load(cache + H, n), before, vmul(cell_load(cache, n), cell_load(cache + 2 * H, n)));
            sum[0] = vfma(cell_load(ds, n), before, sum[0]);
            sum[1] = vfma(cell_load(ds + H, n), before, sum[1]);
            sum[2] = vfma(cell_load(ds + 3 * H, n), now, sum[2]);
        }
        for (int p = 0; p < 3; p++) cell_store(dp + p * H + u, sum[p], n);
    }
}
