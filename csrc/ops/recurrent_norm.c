/* recurrent_norm.c - LSTM and GRU with layer norm. A row's statistics are sums over all of its units, so the workers that share the units
 * of the products share whole rows of what follows: the same bits however many they are. */

/* What the sums begin with: all biases together, but those of the GRU's n, of which r multiplies one kind: 3 H to 4 H. */
static real *norm_starts(const fsq_recurrent_call *c, const fsq_recurrent_direction *d, recurrent_scratch *s) {
    ptrdiff_t N = call_gates(c) * c->H, apart = c->cell == FSQ_GRU ? 2 * c->H : N;
    real *starts = recurrent_take(s, tile_starts(c) * c->H, sizeof(real));
    if (!s->start) return NULL;
    const real *b_ih = d->weights.b_ih, *b_hh = d->weights.b_hh, *ih = d->weights.ln_ih_bias, *hh = d->weights.ln_hh_bias;
    for (ptrdiff_t j = 0; j < N; j++) {
        real x = ih[j] + (b_ih ? b_ih[j] : 0), h = hh[j] + (b_hh ? b_hh[j] : 0);
        starts[j] = j < apart ? x + h : x;
        if (j >= apart) starts[j + c->H] = h;
    }
    return starts;
}

static recurrent_norm norm_of(const fsq_recurrent_direction *d, const real *starts) {
    const fsq_recurrent_weights *w = &d->weights;
    return (recurrent_norm){w->ln_ih_weight, w->ln_hh_weight, w->ln_c_weight, w->ln_c_bias, starts};
}

/* The rows that this worker takes of those between the products, [*from, *to). */
static void norm_share(const fsq_team *team, recurrent_split split, ptrdiff_t r0, ptrdiff_t n, ptrdiff_t *from, ptrdiff_t *to) {
    *from = r0, *to = n;
    if (split != RECURRENT_UNITS) return;
    fsq_barrier(team);                                      /* all units of the rows are there */
    fsq_share(team, n, 1, from, to);
}

static void norm_step(const recurrent_forward_at *at) {
    const recurrent_forward_run *f = at->run;
    const fsq_recurrent_call *c = f->call;
    const recurrent_norm norm = norm_of(f->direction, f->starts);
    ptrdiff_t r0 = at->share.r0, from, to;
    staged_begin(at);
    for (ptrdiff_t g = 0; g < call_gates(c); g++)
        staged_product(at, g, f->inner + r0 * recurrent_inner_width(c), f->h_next[at->time & 1] + r0 * c->P, c->P, 0);
    norm_share(at->team, f->split, r0, at->n, &from, &to);
    recurrent_step s = {.rows = at->rows + from, .n = to - from, .H = c->H, .peepholes = f->direction->weights.w_ch, .norm = &norm};
    FSQ_FN(kernels_now)()->norm_forward_rows[c->cell](&s);
    if (f->split == RECURRENT_UNITS && c->reset && !call_projects(c)) fsq_barrier(at->team);      /* forward_cut goes by units again */
}

static void norm_backward_step(const recurrent_backward_at *at) {
    const recurrent_backward_run *k = at->run;
    const fsq_recurrent_call *c = k->call;
    const recurrent_norm norm = norm_of(k->direction, k->starts);
    ptrdiff_t from, to;
    norm_share(at->team, k->split, at->share.r0, at->n, &from, &to);
    recurrent_back s = {.rows = at->rows + from, .n = to - from, .H = c->H, .peepholes = k->direction->weights.w_ch, .norm = &norm};
    FSQ_FN(kernels_now)()->norm_backward_rows[c->cell](&s);
}

/* Gains, biases and peepholes: this worker's columns of each, row by row the steps' way back. */
static void norm_backward_weights(const fsq_team *team, recurrent_backward_at *at, const backward_chunk *chunk) {
    const FSQ_FN(kernels) *k = FSQ_FN(kernels_now)();
    const recurrent_backward_run *run = at->run;
    const fsq_recurrent_call *c = run->call;
    const fsq_recurrent_gradients *g = run->gradients;
    ptrdiff_t H = c->H, N = call_gates(c) * H, n0, n1, u0, u1;
    real *gains[] = {g->dln_ih_weight, g->dln_hh_weight}, *biases[] = {g->dln_ih_bias, g->dln_hh_bias}, *sums[] = {g->db_ih, g->db_hh};
    fsq_share(team, N, 16, &n0, &n1);
    fsq_share(team, H, 16, &u0, &u1);
    for (ptrdiff_t i = 0; i < chunk->t1 - chunk->t0; i++) {
        at->time = run->order.reverse ? chunk->t0 + i : chunk->t1 - 1 - i;
        ptrdiff_t alive = order_alive(&run->order, at->time);
        for (ptrdiff_t j = 0; j < alive; j++) {
            recurrent_back_row row;
            backward_row(at, &row, run->order.reverse ? j : alive - 1 - j);
            for (int h = 0; h < 2; h++)                     /* of W x, then of U d h' */
                k->norm_backward_row(gains[h] + n0, biases[h] + n0, sums[h] ? sums[h] + n0 : NULL,
                                     row.inner + (h && c->cell == FSQ_GRU ? N : 0) + n0, row.cache + h * N + n0, n1 - n0);
            if (c->cell != FSQ_LSTM) continue;
            k->norm_backward_row((real *)g->dln_c_weight + u0, (real *)g->dln_c_bias + u0, NULL, row.inner + 4 * H + u0, row.inner + 5 * H + u0, u1 - u0);
            const real *now = row.inner + 6 * H, *read[] = {row.c_before, row.c_before, now};
            for (int p = 0; p < 3 && g->dw_ch; p++)
                k->norm_backward_row((real *)g->dw_ch + p * H + u0, NULL, NULL, row.inner + (p == 2 ? 3 : p) * H + u0, read[p] + u0, u1 - u0);
        }
    }
}
