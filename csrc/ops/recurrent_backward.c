/* recurrent_backward.c - backpropagation through time (Werbos 1990) for recurrent_forward.c.
 *
 * Per step: the cell's derivative, then dL/d(d h') = dL/d(sums) U. The gradients of x and of the weights are products over a whole
 * chunk of time, made while its dL/d(sums) are still cached; the chunks go the steps' way back. */

enum { recurrent_back_rows = 512 };                         /* rows of a chunk: with H = 256, 2 to 4 MB of dL/d(sums) */

/* ---------------------------------------------------------------- tables of rows */

/* Place r's row at this step. What comes before it lies one batch earlier, or, in the reverse direction, later. */
static void backward_row(const recurrent_backward_at *at, recurrent_back_row *row, ptrdiff_t r) {
    const recurrent_backward_run *k = at->run;
    const fsq_recurrent_call *c = k->call;
    const fsq_recurrent_direction *d = k->direction;
    const fsq_recurrent_gradients *g = k->gradients;
    ptrdiff_t t = at->time, b = order_row(&k->order, r), now = t * c->B + b, before = k->order.reverse ? now + c->B : now - c->B;
    ptrdiff_t in_chunk = order_start(&k->order, t) - order_start(&k->order, at->begin) + r, gates = call_gates(c) * c->H;
    int first = t == order_first(&k->order, r), reset = order_reset(&k->order, t, r);
    *row = (recurrent_back_row){
        .cache = (const real *)d->cache + now * fsq_recurrent_cache_width(c), .h = (const real *)d->y + now * d->y_row,
        .h_before = reset ? k->masks.zeros : first ? d->h_0 ? (const real *)d->h_0 + b * c->P : k->masks.zeros : (const real *)d->y + before * d->y_row,
        .dy = g->dy ? (const real *)g->dy + now * d->y_row : NULL, .dstate = g->dstates ? (real *)g->dstates + now * c->P : NULL,
        .drop = masks_drop(&k->masks, c, b), .zone_h = masks_zone_h(&k->masks, c, r),
        .dh = k->dh + r * c->P, .direct = k->direct ? k->direct + r * c->P : NULL,
        .dsx = k->dsx + in_chunk * gates, .dsh = k->dsh + in_chunk * gates, .cut = order_cut(&k->order, t, r)};
    if (!fsq_recurrent_cache_width(c)) row->cache = NULL;
    if (c->layer_norm) {
        row->inner = k->inner + in_chunk * recurrent_back_inner_width(c);
        row->hidden = k->hiddens ? k->hiddens + in_chunk * c->H : NULL;
    }
    if (c->cell != FSQ_LSTM) return;
    row->c_before = reset ? k->masks.zeros : first ? d->c_0 ? (const real *)d->c_0 + b * c->H : k->masks.zeros : (const real *)d->cells + before * c->H;
    row->dcell = g->dcells ? (const real *)g->dcells + now * c->H : NULL;
    row->zone_c = masks_zone_c(&k->masks, c, r);
    row->dc = k->dc + r * c->H;
}

static void backward_rows(const recurrent_backward_at *at) {
    const recurrent_backward_run *k = at->run;
    masks_draw_zones(&k->masks, &k->order, k->direction, &at->share, at->time, at->n);
    for (ptrdiff_t r = at->share.r0; r < at->n; r++) backward_row(at, at->rows + r, r);
}

/* ---------------------------------------------------------------- steps */

/* dL/dh' by way of the recurrent product, for all its gates. */
static void backward_recurrent(const recurrent_backward_at *at) {
    const recurrent_backward_run *k = at->run;
    const fsq_recurrent_call *c = k->call;
    ptrdiff_t r0 = at->share.r0, K = call_gates(c) * c->H;
    const real *dsh = k->dsh + (order_start(&k->order, at->time) - order_start(&k->order, at->begin) + r0) * K;
    panel_product(k->dh + r0 * c->P, c->P, dsh, K, at->n - r0, K, at->w_hh, K, at->share.p0, at->share.p1, 0, at->time & 1);
}

static void backward_step(const recurrent_backward_at *at) {
    const recurrent_backward_run *k = at->run;
    const fsq_recurrent_call *c = k->call;
    backward_rows(at);
    if (call_projects(c)) projection_backward_step(at);
    if (call_gated(c)) {
        gated_backward_step(at);
        return;
    }
    if (c->layer_norm) norm_backward_step(at);
    else {
        recurrent_back s = {.rows = at->rows + at->share.r0, .n = at->n - at->share.r0, .H = c->H, .peepholes = k->direction->weights.w_ch,
                            .relu = c->cell == FSQ_RNN_RELU};
        FSQ_FN(kernels_now)()->recurrent_backward_units[c->cell](&s, at->share.u0, at->share.u1);
    }
    if (k->split == RECURRENT_UNITS) fsq_barrier(at->team);
    backward_recurrent(at);
}

/* ---------------------------------------------------------------- the products over a chunk of time */

/* c (M, N) += a^T b over the rows of a chunk, a (rows, M) lying a_row apart: one chain for each element. */
static void chunk_product(const fsq_team *team, const recurrent_backward_run *k, real *c, const real *a, ptrdiff_t a_row, const real *b,
                          ptrdiff_t b_row, ptrdiff_t M, ptrdiff_t N, ptrdiff_t rows) {
    int down = !k->order.reverse;
    matmul_args dw = {.c = c, .a = down ? a + (rows - 1) * a_row : a, .b = down ? b + (rows - 1) * b_row : b, .M = M, .N = N, .K = rows, .c_row = N,
                      .a_row = 1, .a_col = down ? -a_row : a_row, .b_row = down ? -b_row : b_row, .b_col = 1, .add = 1};
    matmul_team(team, &dw, k->work);
    fsq_barrier(team);
}

/* db (n) += the column sums of ds (rows, n), in the same order; this worker's columns. */
static void chunk_bias(const fsq_team *team, const recurrent_backward_run *k, real *db, const real *ds, ptrdiff_t n, ptrdiff_t rows) {
    ptrdiff_t from, to;
    fsq_share(team, n, 16, &from, &to);
    for (ptrdiff_t i = 0; i < rows; i++) {
        const real *row = ds + (k->order.reverse ? i : rows - 1 - i) * n;
        for (ptrdiff_t j = from; j < to; j++) db[j] += row[j];
    }
}

/* d h' and, where the rows are ordered, x of a chunk, row by row; this worker's rows of each time. */
static void chunk_gather(const fsq_team *team, recurrent_backward_at *at, const backward_chunk *chunk) {
    const recurrent_backward_run *k = at->run;
    const fsq_recurrent_call *c = k->call;
    for (ptrdiff_t t = chunk->t0, row = 0; t < chunk->t1; t++) {
        ptrdiff_t alive = order_alive(&k->order, t), from, to;
        fsq_share(team, alive, 1, &from, &to);
        at->time = t;
        for (ptrdiff_t r = from; r < to; r++) {
            recurrent_back_row now;
            backward_row(at, &now, r);
            real *h = k->h_in + (row + r) * c->P;
            for (ptrdiff_t p = 0; p < c->P; p++) h[p] = now.drop ? now.h_before[p] * now.drop[p] : now.h_before[p];
            if (k->x) memcpy(k->x + (row + r) * c->I, (const real *)k->direction->x + (t * c->B + order_row(&k->order, r)) * c->I, (size_t)c->I * sizeof(real));
        }
        row += alive;
    }
    fsq_barrier(team);
}

static void chunk_input(const fsq_team *team, const recurrent_backward_run *k, const backward_chunk *chunk) {
    const fsq_recurrent_call *c = k->call;
    ptrdiff_t K = call_gates(c) * c->H;
    real *dx = k->gradients->dx;
    matmul_args product = {.c = k->dx ? k->dx : dx + chunk->t0 * c->B * c->I, .a = k->dsx, .b = k->direction->weights.w_ih, .M = chunk->rows, .N = c->I,
                           .K = K, .c_row = c->I, .a_row = K, .a_col = 1, .b_row = c->I, .b_col = 1};
    matmul_team(team, &product, k->work);
    fsq_barrier(team);
    for (ptrdiff_t t = chunk->t0, row = 0; k->dx && t < chunk->t1; t++) {
        ptrdiff_t alive = order_alive(&k->order, t), from, to;
        fsq_share(team, alive, 1, &from, &to);
        for (ptrdiff_t r = from; r < to; r++)
            memcpy(dx + (t * c->B + order_row(&k->order, r)) * c->I, k->dx + (row + r) * c->I, (size_t)c->I * sizeof(real));
        row += alive;
    }
}

static void chunk_peepholes(const fsq_team *team, recurrent_backward_at *at, const backward_chunk *chunk) {
    const recurrent_backward_run *k = at->run;
    ptrdiff_t from, to;
    fsq_share(team, k->call->H, FSQ_FN(kernels_now)()->lanes, &from, &to);
    for (ptrdiff_t i = 0; i < chunk->t1 - chunk->t0 && from < to; i++) {
        at->time = k->order.reverse ? chunk->t0 + i : chunk->t1 - 1 - i;
        ptrdiff_t alive = order_alive(&k->order, at->time);
        for (ptrdiff_t r = 0; r < alive; r++) backward_row(at, at->rows + r, k->order.reverse ? alive - 1 - r : r);
        FSQ_FN(kernels_now)()->lstm_backward_peepholes(k->gradients->dw_ch, at->rows, alive, k->call->H, from, to);
    }
}

static void chunk_products(const fsq_team *team, recurrent_backward_at *at, const backward_chunk *chunk) {
    const recurrent_backward_run *k = at->run;
    const fsq_recurrent_call *c = k->call;
    const fsq_recurrent_gradients *g = k->gradients;
    ptrdiff_t K = call_gates(c) * c->H;
    at->begin = chunk->t0;
    if (g->dx) chunk_input(team, k, chunk);
    if (!g->weights) return;
    chunk_gather(team, at, chunk);
    const real *x = k->x ? k->x : (const real *)k->direction->x + chunk->t0 * c->B * c->I;
    chunk_product(team, k, g->dw_ih, k->dsx, K, x, c->I, K, c->I, chunk->rows);
    if (call_gated(c)) gated_backward_weights(team, at, chunk);
    else chunk_product(team, k, g->dw_hh, k->dsh, K, k->h_in, c->P, K, c->P, chunk->rows);
    if (c->layer_norm) norm_backward_weights(team, at, chunk);
    else {
        chunk_bias(team, k, g->db_ih, c->cell == FSQ_MUT1 ? k->dsh : k->dsx, K, chunk->rows);      /* MUT1's b_n stands outside of the inner tanh */
        if (g->db_hh) chunk_bias(team, k, g->db_hh, k->dsh, K, chunk->rows);
    }
    if (g->dw_ch && !c->layer_norm) chunk_peepholes(team, at, chunk);
    if (g->dw_hr) projection_backward_weights(team, at, chunk);
}

/* ---------------------------------------------------------------- one direction */

/* W_hh (K, P) and W_hr (P, H) in panels: each worker packs the columns that it reads, or all together pack all. */
static void backward_pack(const fsq_team *team, recurrent_backward_at *at) {
    const recurrent_backward_run *k = at->run;
    const fsq_recurrent_call *c = k->call;
    ptrdiff_t K = call_gates(c) * c->H, cols = FSQ_FN(kernels_now)()->gemm_cols, own = k->split == RECURRENT_UNITS ? team->rank * cols : 0;
    fsq_team each = k->split == RECURRENT_UNITS ? (fsq_team){0, 1, NULL} : *team;
    real *panels = k->panels + (at->share.p0 + own) * K;
    matmul_pack_args hh = {panels, (const real *)k->direction->weights.w_hh + at->share.p0, at->share.p1 - at->share.p0, K, c->P, 1};
    matmul_pack_team(&each, &hh);
    at->w_hh = panels;
    if (call_projects(c)) {
        panels = k->panels + (c->P + (team->size + 1) * cols) * K + (at->share.u0 + own) * c->P;
        matmul_pack_args hr = {panels, (const real *)k->direction->weights.w_hr + at->share.u0, at->share.u1 - at->share.u0, c->P, c->H, 1};
        matmul_pack_team(&each, &hr);
        at->w_hr = panels;
    }
    fsq_barrier(team);
}

/* What comes back into the last steps; the mask. By ways around the product where there are such, for a mask would change it. */
static void backward_prepare(const recurrent_backward_run *k, const recurrent_share *share) {
    const fsq_recurrent_call *c = k->call;
    const real *dh_n = k->gradients->dh_n, *dc_n = k->gradients->dc_n;
    for (ptrdiff_t r = share->r0; r < share->r1; r++) {
        ptrdiff_t b = order_row(&k->order, r);
        masks_draw_drop(&k->masks, c, k->direction, b, share->p0, share->p1);
        for (ptrdiff_t p = share->p0; p < share->p1; p++) {
            real dh = dh_n ? dh_n[b * c->P + p] : 0;
            k->dh[r * c->P + p] = k->direct ? -(real)0 : dh;            /* -0 changes no sum, not even its sign */
            if (k->direct) k->direct[r * c->P + p] = dh;
        }
        for (ptrdiff_t u = share->u0; k->dc && u < share->u1; u++) k->dc[r * c->H + u] = dc_n ? dc_n[b * c->H + u] : 0;
    }
}

/* dh_0 and dc_0 of places [r0, r1). */
static void backward_final(recurrent_backward_at *at, ptrdiff_t r0, ptrdiff_t r1) {
    const recurrent_backward_run *k = at->run;
    const fsq_recurrent_call *c = k->call;
    for (ptrdiff_t r = r0; r < r1; r++) {
        ptrdiff_t b = order_row(&k->order, r), steps = order_length(&k->order, r);
        recurrent_back_row row = {.dh = k->dh + r * c->P, .direct = k->direct ? k->direct + r * c->P : NULL,
                                  .drop = steps ? masks_drop(&k->masks, c, b) : NULL,
                                  .cut = steps && order_reset(&k->order, order_first(&k->order, r), r)};
        FSQ_FN(kernels_now)()->recurrent_carry((real *)k->gradients->dh_0 + b * c->P, &row, c->P);
        for (ptrdiff_t u = 0; k->dc && u < c->H; u++) ((real *)k->gradients->dc_0)[b * c->H + u] = row.cut ? 0 : k->dc[r * c->H + u];
    }
}

/* This worker's part of every step. */
static recurrent_share backward_share(const recurrent_backward_run *k, const fsq_team *team) {
    recurrent_forward_run same = {.call = k->call, .order = k->order, .split = k->split};
    return forward_share(&same, team);
}

/* The chunk that the steps come to at time t. */
static backward_chunk backward_chunk_at(const recurrent_order *o, ptrdiff_t t) {
    backward_chunk chunk = {t, t + 1, order_alive(o, t)};
    for (;;) {
        ptrdiff_t next = o->reverse ? chunk.t1 : chunk.t0 - 1;
        if (next < 0 || next >= o->steps || chunk.rows + order_alive(o, next) > recurrent_back_rows) return chunk;
        chunk.rows += order_alive(o, next);
        if (o->reverse) chunk.t1++;
        else chunk.t0--;
    }
}

static void backward_direction(const fsq_team *team, const recurrent_backward_run *k) {
    const recurrent_order *o = &k->order;
    recurrent_backward_at at = {.team = team, .run = k, .share = backward_share(k, team)};
    ptrdiff_t r0 = at.share.r0, r1 = at.share.r1;
    at.rows = k->rows + team->rank * k->call->B;            /* the chunks' products need one each, even where one worker does the steps */
    if (k->split != RECURRENT_ALONE || team->rank == 0) backward_prepare(k, &at.share);
    backward_pack(team, &at);
    for (ptrdiff_t done = 0; done < o->steps;) {
        backward_chunk chunk = backward_chunk_at(o, o->reverse ? done : o->steps - 1 - done);
        ptrdiff_t steps = chunk.t1 - chunk.t0;
        for (ptrdiff_t i = 0; i < steps && (k->split != RECURRENT_ALONE || team->rank == 0); i++) {
            at.time = o->reverse ? chunk.t0 + i : chunk.t1 - 1 - i;
            at.begin = chunk.t0;
            ptrdiff_t alive = order_alive(o, at.time);
            at.n = alive < r1 ? alive : r1;
            if (at.n > r0) backward_step(&at);
        }
        fsq_barrier(team);
        chunk_products(team, &at, &chunk);
        fsq_barrier(team);                                  /* dsx and dsh may be written again */
        done += steps;
    }
    fsq_share(team, k->call->B, 1, &r0, &r1);
    backward_final(&at, r0, r1);
}

/* ---------------------------------------------------------------- the call */

/* Lays out a direction's scratch; fills what does not depend on the threads. */
static recurrent_backward_run backward_run(const fsq_recurrent_call *c, const fsq_recurrent_direction *d, const fsq_recurrent_gradients *g,
                                           int threads, recurrent_scratch *s) {
    const FSQ_FN(kernels) *kernels = FSQ_FN(kernels_now)();
    recurrent_backward_run k = {.call = c, .direction = d, .gradients = g};
    ptrdiff_t N = c->to - c->from, B = c->B, I = c->I, H = c->H, P = c->P, K = call_gates(c) * H, widest = H > P ? H : P;
    ptrdiff_t rows = B > recurrent_back_rows ? B : N * B < recurrent_back_rows ? N * B : recurrent_back_rows;
    k.order = order_make(c, d ? d->reverse : 0, s);
    k.masks = masks_make(c, s);
    k.dh = recurrent_take(s, B * P, sizeof(real));
    if (call_drops(c) || c->zoneout_h > 0 || c->cell >= FSQ_GRU) k.direct = recurrent_take(s, B * P, sizeof(real));
    if (c->cell == FSQ_LSTM) k.dc = recurrent_take(s, B * H, sizeof(real));
    if (call_projects(c)) {
        k.upstream = recurrent_take(s, rows * P, sizeof(real));
        k.dhidden = recurrent_take(s, B * H, sizeof(real));
        k.hiddens = recurrent_take(s, rows * H, sizeof(real));
    }
    k.dsx = k.dsh = recurrent_take(s, rows * K, sizeof(real));
    if (c->cell == FSQ_GRU || c->cell == FSQ_MUT1 || c->layer_norm) k.dsh = recurrent_take(s, rows * K, sizeof(real));
    if (!call_tiled(c)) k.inner = recurrent_take(s, rows * recurrent_back_inner_width(c), sizeof(real));
    if (c->layer_norm) k.starts = norm_starts(c, d, s);
    k.h_in = recurrent_take(s, rows * P, sizeof(real));
    if (c->lengths) {
        k.x = recurrent_take(s, rows * I, sizeof(real));
        k.dx = recurrent_take(s, rows * I, sizeof(real));
    }
    k.panels = recurrent_take(s, (P + (threads + 1) * kernels->gemm_cols) * K + (call_projects(c) ? (H + (threads + 1) * kernels->gemm_cols) * P : 0),
                              sizeof(real));
    k.rows = recurrent_take(s, threads * B, sizeof(recurrent_back_row));
    size_t dx = matmul_work(kernels, rows, I, K, 0, threads), dw = matmul_work(kernels, K > P ? K : P, I > widest ? I : widest, rows, 0, threads);
    k.work = recurrent_take(s, 1, dx > dw ? dx : dw);
    return k;
}

typedef struct {
    recurrent_backward_run run[2];
    int D, groups;
} backward_args;

static void backward_body(const fsq_team *team, void *context) {
    const backward_args *a = context;
    fsq_team part;
    int groups = team->size < a->groups ? 1 : a->groups, group = fsq_team_part(team, groups, &part);
    fsq_fp_state fp = fsq_flush_denormals();
    for (int d = group; d < a->D; d += groups) backward_direction(&part, &a->run[d]);
    fsq_restore_denormals(fp);
}

/* Zeros where the gradients of the weights do not go on from what is there. */
static void backward_begin(const fsq_recurrent_call *c, const fsq_recurrent_gradients *g) {
    ptrdiff_t K = call_gates(c) * c->H;
    struct { void *at; ptrdiff_t n; } all[] = {
        {g->dw_ih, K * c->I}, {g->dw_hh, K * c->P}, {g->db_ih, K}, {g->db_hh, K}, {g->dw_hr, c->P * c->H}, {g->dw_ch, 3 * c->H}, {g->dln_ih_weight, K},
        {g->dln_ih_bias, K}, {g->dln_hh_weight, K}, {g->dln_hh_bias, K}, {g->dln_c_weight, c->H}, {g->dln_c_bias, c->H}};
    if (!g->weights || g->accumulate) return;
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        if (all[i].at) memset(all[i].at, 0, (size_t)all[i].n * sizeof(real));
}

size_t FSQ_FN(recurrent_backward_work)(const fsq_recurrent_call *call, int D, int threads) {
    recurrent_scratch s = {NULL, 0};
    backward_run(call, NULL, NULL, threads, &s);
    return D * s.used + 64;
}

void FSQ_FN(recurrent_backward)(const fsq_recurrent_call *call, const fsq_recurrent_direction *directions, const fsq_recurrent_gradients *gradients,
                                int D, int threads, void *work) {
    backward_args a = {.D = D};
    recurrent_scratch s = {recurrent_line(work), 0};
    for (int d = 0; d < D; d++) {
        a.run[d] = backward_run(call, directions + d, gradients + d, threads, &s);
        backward_begin(call, gradients + d);
    }
    recurrent_plan plan = recurrent_plan_of(&a.run[0].order, D, 0, threads);
    a.groups = plan.groups;
    for (int d = 0; d < D; d++) a.run[d].split = plan.split;
    if (a.run[0].order.rows == 0) plan.threads = 1;
    fsq_parallel(plan.threads, backward_body, &a);
}
