/* gated.c - the cells whose reset gate stands before the product: the GRU of Cho et al. 2014 and MUT1 to MUT3 (Jozefowicz et al. 2015),
 * and their derivatives, between the products of ops/recurrent_gated.c. v = d h' is what the products read.
 *
 *   r, z = sigmoid(sum), n = tanh(sum with U_n (r v)); MUT1: n = tanh(tanh(W_n x) + U_n (r v) + b_n); MUT3: z's sum has U_z tanh(v)
 *   GRU: h~ = z h' + (1 - z) n; MUT: h~ = z n + (1 - z) h' */

/* r, and what the other two products read; MUT1: the inner tanh, to which its product is added. */
static void gated_reset_units(const recurrent_step *s, ptrdiff_t from, ptrdiff_t to) {
    const ptrdiff_t H = s->H;
    for (const recurrent_row *row = s->rows; row < s->rows + s->n; row++)
        for (ptrdiff_t u = from; u < to; u += VL) {
            ptrdiff_t width = to - u < VL ? to - u : VL;
            vreal r = vsigmoid(cell_load(row->sums + u, width)), v = cell_load(row->h_in + u, width);
            cell_store(row->inner + u, vmul(r, v), width);
            if (row->cache) cell_store(row->cache + u, r, width);
            if (s->cell == FSQ_MUT3) cell_store(row->inner + H + u, vtanh(v), width);
            if (s->cell == FSQ_MUT1) {
                vreal x = vtanh(cell_load(row->sums + 2 * H + u, width));
                cell_store(row->sums + 2 * H + u, vadd(x, cell_load(s->starts + 2 * H + u, width)), width);
                if (row->cache) cell_store(row->cache + 3 * H + u, x, width);
            }
        }
}

/* z, n and h. */
static void gated_forward_units(const recurrent_step *s, ptrdiff_t from, ptrdiff_t to) {
    const ptrdiff_t H = s->H;
    for (const recurrent_row *row = s->rows; row < s->rows + s->n; row++)
        for (ptrdiff_t u = from; u < to; u += VL) {
            ptrdiff_t width = to - u < VL ? to - u : VL;
            vreal z = vsigmoid(cell_load(row->sums + H + u, width)), n = vtanh(cell_load(row->sums + 2 * H + u, width));
            vreal before = cell_load(row->h_before + u, width);
            if (row->cache) {
                cell_store(row->cache + H + u, z, width);
                cell_store(row->cache + 2 * H + u, n, width);
            }
            cell_finish(row, u, width, s->cell == FSQ_GRU_BEFORE ? vfma(z, vsub(before, n), n) : vfma(z, vsub(n, before), before));
        }
}

/* dL/d(the sums of z and n). */
static void gated_backward_units(const recurrent_back *s, ptrdiff_t from, ptrdiff_t to) {
    const vreal one = vset1(1);
    const ptrdiff_t H = s->H;
    for (const recurrent_back_row *row = s->rows; row < s->rows + s->n; row++)
        for (ptrdiff_t u = from; u < to; u += VL) {
            ptrdiff_t width = to - u < VL ? to - u : VL;
            vreal dh = cell_upstream(row, u, width), before = cell_load(row->h_before + u, width);
            vreal z = cell_load(row->cache + H + u, width), n = cell_load(row->cache + 2 * H + u, width);
            /* GRU: h~ = z h' + (1 - z) n; MUT: n and h' change places */
            int gru = s->cell == FSQ_GRU_BEFORE;
            vreal of_h = gru ? z : vsub(one, z), of_n = gru ? vsub(one, z) : z;
            vreal dz = vmul(dh, gru ? vsub(before, n) : vsub(n, before));
            cell_store(row->direct + u, vfma(dh, of_h, cell_load(row->direct + u, width)), width);
            /* n = tanh(sum): 1 - n^2; z = sigmoid(sum): z (1 - z) */
            vreal dn_sum = vmul(vmul(dh, of_n), vfnma(n, n, one)), dz_sum = vmul(dz, vmul(z, vsub(one, z)));
            cell_store(row->dsh + H + u, dz_sum, width);
            cell_store(row->dsh + 2 * H + u, dn_sum, width);
            if (s->cell == FSQ_MUT1) {                      /* the inner tanh(W_n x) */
                vreal x = cell_load(row->cache + 3 * H + u, width);
                cell_store(row->dsx + H + u, dz_sum, width);
                cell_store(row->dsx + 2 * H + u, vmul(dn_sum, vfnma(x, x, one)), width);
            }
        }
}

/* v of one row. */
FSQ_INLINE vreal gated_v(const recurrent_back_row *row, ptrdiff_t unit, ptrdiff_t units) {
    vreal h = cell_load(row->h_before + unit, units);
    return row->drop ? vmul(h, cell_load(row->drop + unit, units)) : h;
}

/* From inner = dL/d(r v): dL/d(the sum of r), and dL/dv by way of r v. */
static void gated_backward_reset(const recurrent_back *s, ptrdiff_t from, ptrdiff_t to) {
    const vreal one = vset1(1);
    for (const recurrent_back_row *row = s->rows; row < s->rows + s->n; row++)
        for (ptrdiff_t u = from; u < to; u += VL) {
            ptrdiff_t width = to - u < VL ? to - u : VL;
            vreal d = cell_load(row->inner + u, width), r = cell_load(row->cache + u, width);
            vreal dr_sum = vmul(vmul(d, gated_v(row, u, width)), vmul(r, vsub(one, r)));
            cell_store(row->dsh + u, dr_sum, width);
            if (s->cell == FSQ_MUT1) cell_store(row->dsx + u, dr_sum, width);
            cell_store(row->dh + u, vmul(d, r), width);
        }
}

/* MUT3, from inner + H = dL/d(tanh v): dL/dv by this way too. */
static void gated_backward_tanh(const recurrent_back *s, ptrdiff_t from, ptrdiff_t to) {
    const vreal one = vset1(1);
    for (const recurrent_back_row *row = s->rows; row < s->rows + s->n; row++)
        for (ptrdiff_t u = from; u < to; u += VL) {
            ptrdiff_t width = to - u < VL ? to - u : VL;
            vreal y = vtanh(gated_v(row, u, width)), d = cell_load(row->inner + s->H + u, width);
            cell_store(row->dh + u, vfma(d, vfnma(y, y, one), cell_load(row->dh + u, width)), width);
        }
}

/* r v and, for MUT3, tanh v of one row: what the gradients of U_n and U_z are products with. */
static void gated_operands(real *inner, const real *v, const real *r, ptrdiff_t H, fsq_cell cell) {
    for (ptrdiff_t u = 0; u < H; u += VL) {
        ptrdiff_t width = H - u < VL ? H - u : VL;
        vreal in = cell_load(v + u, width);
        cell_store(inner + u, vmul(cell_load(r + u, width), in), width);
        if (cell == FSQ_MUT3) cell_store(inner + H + u, vtanh(in), width);
    }
}
