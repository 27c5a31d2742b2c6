/* recurrent_projection.c - the LSTM's projection (Sak et al. 2014): h~ = W_hr (o tanh(c~)), a second stage of each step. */

static void projection_step(const recurrent_forward_at *at) {
    const FSQ_FN(kernels) *k = FSQ_FN(kernels_now)();
    const recurrent_forward_run *f = at->run;
    const fsq_recurrent_call *c = f->call;
    ptrdiff_t r0 = at->share.r0, rows = at->n - r0, p0 = at->share.p0, p1 = at->share.p1;
    const real *panels = (const real *)f->direction->packed + layout_of(c).w_hr + p0 * c->H;
    if (f->split == RECURRENT_UNITS) fsq_barrier(at->team);             /* all of o tanh(c~) is there */
    panel_product(f->projected + r0 * c->P, c->P, f->hidden + r0 * c->H, c->H, rows, c->H, panels, c->H, p0, p1, 0, at->time & 1);
    k->recurrent_finish_units(at->rows + r0, f->projected + r0 * c->P, rows, c->P, p0, p1);
}

/* dL/dh~, then dL/d(o tanh(c~)), which the cell's derivative takes for dL/dh~. */
static void projection_backward_step(const recurrent_backward_at *at) {
    const FSQ_FN(kernels) *k = FSQ_FN(kernels_now)();
    const recurrent_backward_run *run = at->run;
    const fsq_recurrent_call *c = run->call;
    ptrdiff_t r0 = at->share.r0, rows = at->n - r0;
    real *upstream = run->upstream + (order_start(&run->order, at->time) - order_start(&run->order, at->begin) + r0) * c->P;
    k->recurrent_upstream_units(upstream, at->rows + r0, rows, c->P, at->share.p0, at->share.p1);
    if (run->split == RECURRENT_UNITS) fsq_barrier(at->team);
    panel_product(run->dhidden + r0 * c->H, c->H, upstream, c->P, rows, c->P, at->w_hr, c->P, at->share.u0, at->share.u1, 0, at->time & 1);
    for (ptrdiff_t r = r0; r < at->n; r++) {
        recurrent_back_row *row = at->rows + r;
        row->dy = run->dhidden + r * c->H;
        row->dh = run->masks.zeros;
        row->drop = row->zone_h = NULL;
        row->direct = row->dstate = NULL;
    }
}

/* dW_hr += dL/dh~^T (o tanh(c~)), which is made again row by row, but with layer norm is there from the steps. */
static void projection_backward_weights(const fsq_team *team, recurrent_backward_at *at, const backward_chunk *chunk) {
    const FSQ_FN(kernels) *k = FSQ_FN(kernels_now)();
    const recurrent_backward_run *run = at->run;
    const fsq_recurrent_call *c = run->call;
    for (ptrdiff_t t = chunk->t0, row = 0; !c->layer_norm && t < chunk->t1; t++) {
        ptrdiff_t alive = order_alive(&run->order, t), from, to;
        fsq_share(team, alive, 1, &from, &to);
        at->time = t;
        for (ptrdiff_t r = from; r < to; r++) {
            recurrent_back_row now;
            backward_row(at, &now, r);
            k->lstm_hidden_again(run->hiddens + (row + r) * c->H, &now, c->H);
        }
        row += alive;
    }
    fsq_barrier(team);
    chunk_product(team, run, run->gradients->dw_hr, run->upstream, c->P, run->hiddens, c->H, c->P, c->H, chunk->rows);
}
