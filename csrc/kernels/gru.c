/* gru.c - the gated recurrent unit with the reset gate after the product (Cho et al. 2014; this form: cuDNN, PyTorch, Keras), and its
 * derivative. Included by recurrent.c.
 *
 *   r, z = sigmoid(sum); n = tanh(in + r hn), in = W_n x + b_in, hn = U_n h' + b_hn; h~ = z h' + (1 - z) n */

/* sums r, z, hn and `in` of one row and block. */
FSQ_INLINE void gru_forward(const vreal *sums, vreal in, const recurrent_step *s, const recurrent_row *row, ptrdiff_t unit, ptrdiff_t units) {
    vreal r = vsigmoid(sums[0]), z = vsigmoid(sums[1]), n = vtanh(vfma(r, sums[2], in));
    vreal before = cell_load(row->h_before + unit, units);
    if (row->cache) {
        real *cache = row->cache + unit;
        cell_store(cache, r, units);
        cell_store(cache + s->H, z, units);
        cell_store(cache + 2 * s->H, n, units);
        cell_store(cache + 3 * s->H, sums[2], units);
    }
    cell_finish(row, unit, units, vfma(z, vsub(before, n), n));
}

static void gru_backward_units(const recurrent_back *s, ptrdiff_t from, ptrdiff_t to) {
    const vreal one = vset1(1);
    const ptrdiff_t H = s->H;
    for (const recurrent_back_row *row = s->rows; row < s->rows + s->n; row++)
        for (ptrdiff_t u = from; u < to; u += VL) {
            ptrdiff_t width = to - u < VL ? to - u : VL;
            const real *cache = row->cache + u;
            vreal dh = cell_upstream(row, u, width);
            vreal r = cell_load(cache, width), z = cell_load(cache + H, width), n = cell_load(cache + 2 * H, width), hn = cell_load(cache + 3 * H, width);
            /* h~ = z h' + (1 - z) n */
            vreal dz = vmul(dh, vsub(cell_load(row->h_before + u, width), n)), dn = vmul(dh, vsub(one, z));
            cell_store(row->direct + u, vfma(dh, z, cell_load(row->direct + u, width)), width);
            /* n = tanh(in + r hn): 1 - n^2; r, z = sigmoid(sum): s (1 - s) */
            vreal din = vmul(dn, vfnma(n, n, one)), dr = vmul(din, hn);
            vreal dr_sum = vmul(dr, vmul(r, vsub(one, r))), dz_sum = vmul(dz, vmul(z, vsub(one, z)));
            cell_store(row->dsx + u, dr_sum, width);
            cell_store(row->dsx + H + u, dz_sum, width);
            cell_store(row->dsx + 2 * H + u, din, width);
            cell_store(row->dsh + u, dr_sum, width);
            cell_store(row->dsh + H + u, dz_sum, width);
            cell_store(row->dsh + 2 * H + u, vmul(din, r), width);
        }
}
