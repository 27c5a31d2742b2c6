/* recurrent_gated.c - the GRU with the reset gate before the product, and MUT1 to MUT3: two products a step, one after the other, in
 * either direction of time. Between them every worker waits for all units of r v. */

static void gated_step(const recurrent_forward_at *at) {
    const FSQ_FN(kernels) *k = FSQ_FN(kernels_now)();
    const recurrent_forward_run *f = at->run;
    const fsq_recurrent_call *c = f->call;
    ptrdiff_t r0 = at->share.r0, H = c->H, width = recurrent_inner_width(c);
    real *sums = staged_begin(at), *inner = f->inner + r0 * width, *v = f->h_next[at->time & 1] + r0 * H;
    recurrent_step s = {.rows = at->rows + r0, .n = at->n - r0, .H = H, .cell = c->cell, .starts = f->direction->packed};
    staged_product(at, 0, sums, v, H, 1);
    k->gated_reset_units(&s, at->share.u0, at->share.u1);
    if (f->split == RECURRENT_UNITS) fsq_barrier(at->team);
    if (c->cell == FSQ_MUT3) staged_product(at, 1, sums, inner + H, width, 1);
    else if (c->cell != FSQ_MUT1) staged_product(at, 1, sums, v, H, 1);
    staged_product(at, 2, sums, inner, width, 1);
    k->gated_forward_units(&s, at->share.u0, at->share.u1);
}

/* Columns [p0, p1) of c (places, c_row) = or += dL/d(sums of gates [gate, end)) U. */
static void gated_backward_product(const recurrent_backward_at *at, real *c, ptrdiff_t c_row, ptrdiff_t gate, ptrdiff_t end, int add) {
    const recurrent_backward_run *k = at->run;
    ptrdiff_t r0 = at->share.r0, H = k->call->H, K = 3 * H, cols = FSQ_FN(kernels_now)()->gemm_cols;
    const real *dsh = k->dsh + (order_start(&k->order, at->time) - order_start(&k->order, at->begin) + r0) * K;
    panel_product(c + r0 * c_row, c_row, dsh + gate * H, K, at->n - r0, (end - gate) * H, at->w_hh + gate * H * cols, K, at->share.p0, at->share.p1,
                  add, at->time & 1);
}

static void gated_backward_step(const recurrent_backward_at *at) {
    const FSQ_FN(kernels) *k = FSQ_FN(kernels_now)();
    const recurrent_backward_run *run = at->run;
    const fsq_recurrent_call *c = run->call;
    ptrdiff_t r0 = at->share.r0, u0 = at->share.u0, u1 = at->share.u1, width = recurrent_back_inner_width(c);
    recurrent_back s = {.rows = at->rows + r0, .n = at->n - r0, .H = c->H, .cell = c->cell};
    for (ptrdiff_t r = r0; r < at->n; r++) at->rows[r].inner = run->inner + r * width;      /* by place: nothing is kept from step to step */
    k->gated_backward_units(&s, u0, u1);
    if (run->split == RECURRENT_UNITS) fsq_barrier(at->team);
    gated_backward_product(at, run->inner, width, 2, 3, 0);
    k->gated_backward_reset(&s, u0, u1);
    if (run->split == RECURRENT_UNITS) fsq_barrier(at->team);
    gated_backward_product(at, run->dh, c->H, 0, c->cell == FSQ_GRU_BEFORE || c->cell == FSQ_MUT2 ? 2 : 1, 1);
    if (c->cell != FSQ_MUT3) return;
    gated_backward_product(at, run->inner + c->H, width, 1, 2, 0);
    k->gated_backward_tanh(&s, u0, u1);
}

/* Each gate's rows of dW_hh with what its product has read; U_z of MUT1 is not there and keeps its 0. */
static void gated_backward_weights(const fsq_team *team, recurrent_backward_at *at, const backward_chunk *chunk) {
    const recurrent_backward_run *k = at->run;
    const fsq_recurrent_call *c = k->call;
    ptrdiff_t H = c->H, K = 3 * H, width = recurrent_back_inner_width(c), cache = fsq_recurrent_cache_width(c);
    real *dw = k->gradients->dw_hh;
    for (ptrdiff_t t = chunk->t0, row = 0; t < chunk->t1; t++) {
        ptrdiff_t alive = order_alive(&k->order, t), from, to;
        fsq_share(team, alive, 1, &from, &to);
        for (ptrdiff_t r = from; r < to; r++)
            FSQ_FN(kernels_now)()->gated_operands(k->inner + (row + r) * width, k->h_in + (row + r) * H,
                                                  (const real *)k->direction->cache + (t * c->B + order_row(&k->order, r)) * cache, H, c->cell);
        row += alive;
    }
    fsq_barrier(team);
    chunk_product(team, k, dw, k->dsh, K, k->h_in, H, c->cell == FSQ_GRU_BEFORE || c->cell == FSQ_MUT2 ? 2 * H : H, H, chunk->rows);
    if (c->cell == FSQ_MUT3) chunk_product(team, k, dw + H * H, k->dsh + H, K, k->inner + H, width, H, H, chunk->rows);
    chunk_product(team, k, dw + 2 * H * H, k->dsh + 2 * H, K, k->inner, width, H, H, chunk->rows);
}
