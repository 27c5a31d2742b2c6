/* rnn.c - the cell of an Elman network (Elman 1990): h~ = tanh(sum) or relu(sum), and its derivative. Included by recurrent.c. */

FSQ_INLINE void rnn_forward(const vreal *sums, const recurrent_step *s, const recurrent_row *row, ptrdiff_t unit, ptrdiff_t units) {
    vreal h = s->relu ? vselect(vgt(vzero(), sums[0]), vzero(), sums[0]) : vtanh(sums[0]);     /* NaN is not below 0 and stays */
    if (row->cache) cell_store(row->cache + unit, h, units);
    cell_finish(row, unit, units, h);
}

static void rnn_backward_units(const recurrent_back *s, ptrdiff_t from, ptrdiff_t to) {
    const vreal one = vset1(1);
    for (const recurrent_back_row *row = s->rows; row < s->rows + s->n; row++)
        for (ptrdiff_t u = from; u < to; u += VL) {
            ptrdiff_t n = to - u < VL ? to - u : VL;
            vreal dh = cell_upstream(row, u, n), h = cell_load((row->cache ? row->cache : row->h) + u, n);
            /* h~ = relu(sum), or tanh(sum): 1 - h~^2 */
            cell_store(row->dsx + u, s->relu ? vselect(vgt(h, vzero()), dh, vzero()) : vmul(dh, vfnma(h, h, one)), n);
        }
}
