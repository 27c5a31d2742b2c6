/* attention_decoder_backward.c - backpropagation through time for attention_decoder.c.
 *
 * Before the loop dL/d[s_j; c_j] by way of the outputs, in it the cell and the attention of each step, each worker its rows without a
 * barrier, and after it the gradients of x, of the memory and of all weights, one product each over all steps. */

typedef struct {
    const fsq_attention_decoder_call *call;
    const fsq_attention_decoder_arrays *arrays;
    const fsq_attention_decoder_gradients *gradients;
    fsq_recurrent_call cell;
    recurrent_order order;
    /* scratch; with N rows: one for each step, in the order of the cache */
    real *c_0;                                              /* (B, H) by place */
    real *dh, *direct, *dc;                                 /* (B, H) by place: what goes on to the step before; direct: GRU, dc: LSTM */
    real *dsums, *dboth;                                    /* (N, H), (N, H + M): of the outputs' product, and of [s; c] */
    real *before, *x;                                       /* (N, H) s_{j-1}, (N, I) where the rows are ordered, else NULL */
    real *dsx, *dsh;                                        /* (N, G H) dL/d(W x), dL/d(U s'); the same memory for the LSTM */
    real *dqueries, *dscores;                               /* (N, A) with W_q; (T, B, S) */
    decoder_near near;
    real *du, *near_du, *near_dkeys;                        /* (B, A) by place, additive; of the near steps (B, width), and (B) panels by row */
    real *dx;                                               /* (N, I) where the rows are ordered */
    real *context_panels, *state_panels, *query_panels;     /* W_ih's columns of the context, W_hh, W_q */
    real *own;                                              /* for each worker: (S) of a step, (T, M) of a row of the batch, and again (T, M) where not additive */
    recurrent_back_row *rows;                               /* (B) by place */
    void *work;                                             /* matmul's: for all together, then for each worker alone */
    size_t work_together, work_alone;
    ptrdiff_t own_size;
} decoder_backward_run;

typedef struct {
    const decoder_backward_run *run;
    int rank;
    ptrdiff_t r0, n, time, row;                             /* as forward's */
    real *da;                                               /* (S) */
} decoder_backward_at;

static ptrdiff_t decoder_gates(const decoder_backward_run *k) { return call_gates(&k->cell) * k->call->H; }

/* ---------------------------------------------------------------- one step of one worker */

static void decoder_back_row(const decoder_backward_at *at, recurrent_back_row *row, ptrdiff_t r) {
    const decoder_backward_run *k = at->run;
    const fsq_attention_decoder_call *c = k->call;
    ptrdiff_t H = c->H, now = at->row + r, GH = decoder_gates(k);
    *row = (recurrent_back_row){.cache = (const real *)k->arrays->gates + now * 4 * H, .h_before = k->before + now * H, .dy = k->dboth + now * (H + c->M),
                                .dh = k->dh + r * H, .direct = k->direct ? k->direct + r * H : NULL, .dsx = k->dsx + now * GH, .dsh = k->dsh + now * GH};
    if (c->cell != FSQ_LSTM) return;
    row->dc = k->dc + r * H;
    row->c_before = at->time ? (const real *)k->arrays->cells + (order_start(&k->order, at->time - 1) + r) * H : k->c_0 + r * H;
}

/* Place r: from dL/dc_j to the gradients of the query and, additive, of the keys and u. */
static void decoder_attend_backward(const decoder_backward_at *at, ptrdiff_t r) {
    const FSQ_FN(kernels) *kernels = FSQ_FN(kernels_now)();
    const decoder_backward_run *k = at->run;
    const fsq_attention_decoder_call *c = k->call;
    ptrdiff_t b = order_row(&k->order, r), S = decoder_memory_length(c, b), now = at->row + r, place = (at->time * c->B + b) * c->S;
    const real *dcontext = k->dboth + now * (c->H + c->M) + c->H, *memory = (const real *)k->arrays->memory + b * c->S * c->M;
    real *dquery = k->dqueries ? k->dqueries + now * c->A : k->dh + r * c->H, *dscores = k->dscores + place;
    if (S == 0) {
        if (k->dqueries) memset(dquery, 0, (size_t)c->A * sizeof(real));
        return;
    }
    /* c_j = sum_i a_i m_i; the caller may have used a too */
    kernels->gemm_turned(at->da, S, dcontext, c->M, 1, memory, c->M, 1, S, c->M, 0, NULL, FSQ_IDENTITY);
    if (k->gradients->da)
        for (ptrdiff_t i = 0; i < S; i++) at->da[i] += ((const real *)k->gradients->da)[place + i];
    /* a = softmax(e) */
    kernels->softmax_backward(dscores, (const real *)k->arrays->a + place, at->da, 1, S);
    if (c->additive) {
        ptrdiff_t keys = b * c->S * c->A;
        const decoder_near *near = &k->near;
        const real *query = (const real *)k->arrays->queries + now * c->A, *panel = decoder_near_of(near, c, query, b, at->rank);
        if (panel)
            kernels->decoder_backward_near(dquery, k->near_dkeys + b * near->size, k->near_du + r * near->width, dscores, panel, near->keys + b * near->size,
                                           near->stride, decoder_near_u(near, at->rank), S, c->A);
        else
            kernels->decoder_backward_far(dquery, (real *)k->gradients->dkeys + keys, k->du + r * c->A, dscores, query,
                                          (const real *)k->arrays->keys + keys, k->arrays->weights.u, S, c->A);
        return;
    }
    /* e_i = scale (q . m_i) */
    kernels->scale(dscores, S, (real)c->scale);
    kernels->gemm_row(dquery, dscores, 1, memory, c->M, c->M, S, k->dqueries == NULL, NULL, FSQ_IDENTITY);
}

static void decoder_back_step(const decoder_backward_at *at) {
    const decoder_backward_run *k = at->run;
    const fsq_attention_decoder_call *c = k->call;
    ptrdiff_t r0 = at->r0, n = at->n - r0, first = at->row + r0, H = c->H, GH = decoder_gates(k), width = H + c->M;
    for (ptrdiff_t r = r0; r < at->n; r++) decoder_back_row(at, k->rows + r, r);
    recurrent_back s = {.rows = k->rows + r0, .n = n, .H = H};
    FSQ_FN(kernels_now)()->recurrent_backward_units[c->cell](&s, 0, H);
    /* sums = ... + W_c c + U s' */
    panel_product(k->dboth + first * width + H, width, k->dsx + first * GH, GH, n, GH, k->context_panels, GH, 0, c->M, 1, at->time & 1);
    panel_product(k->dh + r0 * H, H, k->dsh + first * GH, GH, n, GH, k->state_panels, GH, 0, H, 0, at->time & 1);
    for (ptrdiff_t r = r0; r < at->n; r++) decoder_attend_backward(at, r);
    /* q = W_q s' */
    if (c->projects) panel_product(k->dh + r0 * H, H, k->dqueries + first * c->A, c->A, n, c->A, k->query_panels, c->A, 0, H, 1, at->time & 1);
}

/* ---------------------------------------------------------------- before the loop */

/* This worker's rows of each time: dL/d(sum of o), s_{j-1} and x. */
static void decoder_gather(const fsq_team *team, const decoder_backward_run *k) {
    const fsq_attention_decoder_call *c = k->call;
    const fsq_attention_decoder_arrays *a = k->arrays;
    ptrdiff_t H = c->H, width = H + c->M;
    for (ptrdiff_t t = 0; t < k->order.steps; t++) {
        ptrdiff_t from, to, row = order_start(&k->order, t);
        fsq_share(team, order_alive(&k->order, t), 1, &from, &to);
        for (ptrdiff_t r = from; r < to; r++) {
            ptrdiff_t b = order_row(&k->order, r), given = (t * c->B + b) * H;
            real *dsums = k->dsums + (row + r) * H, *before = k->before + (row + r) * H;
            /* o = tanh(sum) */
            if (k->gradients->doutputs)
                FSQ_FN(kernels_now)()->pointwise_backward[FSQ_TANH](dsums, (const real *)a->outputs + given, (const real *)k->gradients->doutputs + given, H, 0);
            else memset(dsums, 0, (size_t)H * sizeof(real));
            if (t) memcpy(before, (const real *)a->both + (order_start(&k->order, t - 1) + r) * width, (size_t)H * sizeof(real));
            else if (a->h_0) memcpy(before, (const real *)a->h_0 + b * H, (size_t)H * sizeof(real));
            else memset(before, 0, (size_t)H * sizeof(real));
            if (k->x) memcpy(k->x + (row + r) * c->I, (const real *)a->x + (t * c->B + b) * c->I, (size_t)c->I * sizeof(real));
        }
    }
}

/* What comes back into the last step of each place, and zeros to add to. */
static void decoder_back_begin(const decoder_backward_run *k, ptrdiff_t r0, ptrdiff_t r1) {
    const fsq_attention_decoder_call *c = k->call;
    const fsq_attention_decoder_gradients *g = k->gradients;
    ptrdiff_t H = c->H;
    size_t bytes = (size_t)H * sizeof(real);
    for (ptrdiff_t r = r0; r < r1; r++) {
        ptrdiff_t b = order_row(&k->order, r);
        real *dh = (k->direct ? k->direct : k->dh) + r * H;
        if (k->direct) memset(k->dh + r * H, 0, bytes);
        if (g->dh_n) memcpy(dh, (const real *)g->dh_n + b * H, bytes);
        else memset(dh, 0, bytes);
        if (k->dc && g->dc_n) memcpy(k->dc + r * H, (const real *)g->dc_n + b * H, bytes);
        else if (k->dc) memset(k->dc + r * H, 0, bytes);
        if (k->dc && k->arrays->c_0) memcpy(k->c_0 + r * H, (const real *)k->arrays->c_0 + b * H, bytes);
        else if (k->dc) memset(k->c_0 + r * H, 0, bytes);
        if (!c->additive) continue;
        memset((real *)g->dkeys + b * c->S * c->A, 0, (size_t)(c->S * c->A) * sizeof(real));
        memset(k->du + r * c->A, 0, (size_t)c->A * sizeof(real));
        memset(k->near_du + r * k->near.width, 0, (size_t)k->near.width * sizeof(real));
        memset(k->near_dkeys + b * k->near.size, 0, (size_t)k->near.size * sizeof(real));
    }
}

/* b (K, N), its rows b_row apart, in panels. */
static void decoder_panels(const fsq_team *team, real *panels, const real *b, ptrdiff_t N, ptrdiff_t K, ptrdiff_t b_row) {
    matmul_pack_args p = {panels, b, N, K, b_row, 1};
    matmul_pack_team(team, &p);
}

static void decoder_before_loop(const fsq_team *team, const decoder_backward_run *k) {
    const fsq_attention_decoder_call *c = k->call;
    const fsq_attention_decoder_weights *w = &k->arrays->weights;
    ptrdiff_t GH = decoder_gates(k), H = c->H, width = H + c->M;
    decoder_gather(team, k);
    decoder_panels(team, k->context_panels, (const real *)w->w_ih + c->I, c->M, GH, c->I + c->M);
    decoder_panels(team, k->state_panels, w->w_hh, H, GH, H);
    if (c->projects) decoder_panels(team, k->query_panels, w->w_query, H, c->A, H);
    fsq_barrier(team);
    /* sum of o = W_out [s; c] + b_out */
    matmul_args product = {.c = k->dboth, .a = k->dsums, .b = w->w_out, .M = k->order.rows, .N = width, .K = H, .c_row = width, .a_row = H, .a_col = 1,
                           .b_row = width, .b_col = 1};
    matmul_team(team, &product, k->work);
    fsq_barrier(team);
}

/* ---------------------------------------------------------------- after the loop */

/* c (M, N), its rows c_row apart, = a^T b over all steps, a (N steps, M) and b (N steps, N). */
static void decoder_weight(const fsq_team *team, const decoder_backward_run *k, void *c, ptrdiff_t c_row, const real *a, ptrdiff_t M, const real *b,
                           ptrdiff_t b_row, ptrdiff_t N) {
    matmul_args product = {.c = c, .a = a, .b = b, .M = M, .N = N, .K = k->order.rows, .c_row = c_row, .a_row = 1, .a_col = M, .b_row = b_row, .b_col = 1};
    matmul_team(team, &product, k->work);
    fsq_barrier(team);
}

/* Column sums of a (N steps, n); this worker's columns. */
static void decoder_bias(const fsq_team *team, const decoder_backward_run *k, real *db, const real *a, ptrdiff_t n) {
    ptrdiff_t from, to;
    fsq_share(team, n, bias_grain, &from, &to);
    if (from < to) FSQ_FN(kernels_now)()->bias_backward(db + from, a + from, k->order.rows, n, to - from, 0);
}

static void decoder_weights(const fsq_team *team, const decoder_backward_run *k) {
    const fsq_attention_decoder_call *c = k->call;
    const fsq_attention_decoder_arrays *a = k->arrays;
    const fsq_attention_decoder_gradients *g = k->gradients;
    ptrdiff_t GH = decoder_gates(k), H = c->H, row = c->I + c->M, width = H + c->M, from, to;
    const real *both = a->both;
    decoder_weight(team, k, g->dw_ih, row, k->dsx, GH, k->x ? k->x : a->x, c->I, c->I);
    decoder_weight(team, k, (real *)g->dw_ih + c->I, row, k->dsx, GH, both + H, width, c->M);
    decoder_weight(team, k, g->dw_hh, H, k->dsh, GH, k->before, H, H);
    decoder_weight(team, k, g->dw_out, width, k->dsums, H, both, width, width);
    if (c->projects) decoder_weight(team, k, g->dw_query, H, k->dqueries, c->A, k->before, H, H);
    decoder_bias(team, k, g->db_ih, k->dsx, GH);
    decoder_bias(team, k, g->db_hh, k->dsh, GH);
    decoder_bias(team, k, g->db_out, k->dsums, H);
    if (!c->additive) return;
    real *du = g->du;
    fsq_share(team, c->A, bias_grain, &from, &to);
    if (from < to) FSQ_FN(kernels_now)()->bias_backward(du + from, k->du + from, c->B, c->A, to - from, 0);
}

/* dx = dsx W_x, and, where the rows are ordered, each to its place. */
static void decoder_dx(const fsq_team *team, const decoder_backward_run *k) {
    const fsq_attention_decoder_call *c = k->call;
    ptrdiff_t GH = decoder_gates(k), I = c->I, from, to;
    real *dx = k->dx ? k->dx : k->gradients->dx;
    matmul_args product = {.c = dx, .a = k->dsx, .b = k->arrays->weights.w_ih, .M = k->order.rows, .N = I, .K = GH, .c_row = I, .a_row = GH, .a_col = 1,
                           .b_row = I + c->M, .b_col = 1};
    matmul_team(team, &product, k->work);
    fsq_barrier(team);
    for (ptrdiff_t t = 0; k->dx && t < k->order.steps; t++) {
        fsq_share(team, order_alive(&k->order, t), 1, &from, &to);
        for (ptrdiff_t r = from; r < to; r++)
            memcpy((real *)k->gradients->dx + (t * c->B + order_row(&k->order, r)) * I, dx + (order_start(&k->order, t) + r) * I, (size_t)I * sizeof(real));
    }
}

/* dmemory of place r: the sums over its steps of a_i dc and, where the memory is the keys, of de_i q, one product each. */
static void decoder_dmemory(const decoder_backward_run *k, ptrdiff_t r, int rank) {
    const fsq_attention_decoder_call *c = k->call;
    ptrdiff_t b = order_row(&k->order, r), S = decoder_memory_length(c, b), steps = order_length(&k->order, r), M = c->M, width = c->H + M;
    real *dmemory = (real *)k->gradients->dmemory + b * c->S * M, *dcontext = k->own + rank * k->own_size + c->S, *queries = dcontext + c->T * M;
    fsq_team solo = {0, 1, NULL};
    memset(dmemory + S * M, 0, (size_t)((c->S - S) * M) * sizeof(real));
    for (ptrdiff_t t = 0; t < steps; t++) {
        ptrdiff_t now = order_start(&k->order, t) + r;
        memcpy(dcontext + t * M, k->dboth + now * width + c->H, (size_t)M * sizeof(real));
        if (c->additive) continue;
        memcpy(queries + t * M, c->projects ? (const real *)k->arrays->queries + now * M : k->before + now * M, (size_t)M * sizeof(real));
    }
    matmul_args product = {.c = dmemory, .a = (const real *)k->arrays->a + b * c->S, .b = dcontext, .M = S, .N = M, .K = steps, .c_row = M, .a_row = 1,
                           .a_col = c->B * c->S, .b_row = M, .b_col = 1};
    void *work = ((char *)k->work + k->work_together + (size_t)rank * k->work_alone);
    matmul_team(&solo, &product, work);
    if (c->additive) return;
    product.a = k->dscores + b * c->S, product.b = queries, product.add = 1;
    matmul_team(&solo, &product, work);
}

static void decoder_back_final(const decoder_backward_run *k, ptrdiff_t r, int rank) {
    const fsq_attention_decoder_call *c = k->call;
    const decoder_near *near = &k->near;
    ptrdiff_t H = c->H, b = order_row(&k->order, r);
    if (c->additive && !near->far[b])
        FSQ_FN(kernels_now)()->decoder_near_gradients((real *)k->gradients->dkeys + b * c->S * c->A, k->du + r * c->A, k->near_dkeys + b * near->size, near->stride,
                                                      k->near_du + r * near->width, decoder_near_u(near, rank), decoder_memory_length(c, b), c->A);
    recurrent_back_row row = {.dh = k->dh + r * H, .direct = k->direct ? k->direct + r * H : NULL};
    FSQ_FN(kernels_now)()->recurrent_carry((real *)k->gradients->dh_0 + b * H, &row, H);
    if (k->dc) memcpy((real *)k->gradients->dc_0 + b * H, k->dc + r * H, (size_t)H * sizeof(real));
}

static void decoder_backward_body(const fsq_team *team, void *context) {
    const decoder_backward_run *k = context;
    decoder_backward_at at = {.run = k, .rank = team->rank, .da = k->own + team->rank * k->own_size};
    ptrdiff_t r1;
    fsq_fp_state fp = fsq_flush_denormals();
    order_share(&k->order, team, &at.r0, &r1);
    decoder_back_begin(k, at.r0, r1);
    if (k->call->additive) decoder_near_begin(&k->near, k->call, k->arrays, &k->order, at.r0, r1, at.rank);
    decoder_before_loop(team, k);
    for (at.time = k->order.steps - 1; at.time >= 0; at.time--) {
        ptrdiff_t alive = order_alive(&k->order, at.time);
        at.n = alive < r1 ? alive : r1;
        at.row = order_start(&k->order, at.time);
        if (at.n > at.r0) decoder_back_step(&at);
    }
    for (ptrdiff_t r = at.r0; r < r1; r++) {
        decoder_back_final(k, r, team->rank);
        decoder_dmemory(k, r, team->rank);
    }
    fsq_barrier(team);
    decoder_weights(team, k);
    decoder_dx(team, k);
    fsq_restore_denormals(fp);
}

/* ---------------------------------------------------------------- the call */

/* The most scratch that one of the products of all workers together needs. */
static size_t decoder_work_together(const fsq_attention_decoder_call *c, ptrdiff_t N, ptrdiff_t GH, int threads) {
    const FSQ_FN(kernels) *k = FSQ_FN(kernels_now)();
    ptrdiff_t H = c->H, width = H + c->M;
    const ptrdiff_t sizes[][3] = {{N, width, H}, {GH, c->I, N}, {GH, c->M, N}, {GH, H, N}, {H, width, N}, {c->A, H, N}, {N, c->I, GH}};
    size_t most = 0;
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        size_t work = matmul_work(k, sizes[i][0], sizes[i][1], sizes[i][2], 0, threads);
        if (work > most) most = work;
    }
    return (most + 63) / 64 * 64;
}

static void decoder_backward_layout(decoder_backward_run *k, const fsq_attention_decoder_call *c, int threads, recurrent_scratch *s) {
    const FSQ_FN(kernels) *kernels = FSQ_FN(kernels_now)();
    ptrdiff_t N = decoder_steps(c), H = c->H, B = c->B, cols = kernels->gemm_cols, size = sizeof(real);
    k->call = c;
    k->cell = decoder_cell(c);
    k->order = order_make(&k->cell, 0, s);
    ptrdiff_t GH = decoder_gates(k);
    int lstm = c->cell == FSQ_LSTM;
    k->dh = recurrent_take(s, B * H, size);
    if (lstm) k->dc = recurrent_take(s, B * H, size), k->c_0 = recurrent_take(s, B * H, size);
    else k->direct = recurrent_take(s, B * H, size);
    k->dsums = recurrent_take(s, N * H, size);
    k->dboth = recurrent_take(s, N * (H + c->M), size);
    k->before = recurrent_take(s, N * H, size);
    k->dsx = recurrent_take(s, N * GH, size);
    k->dsh = lstm ? k->dsx : recurrent_take(s, N * GH, size);
    if (c->lengths) k->x = recurrent_take(s, N * c->I, size), k->dx = recurrent_take(s, N * c->I, size);
    if (c->projects) k->dqueries = recurrent_take(s, N * c->A, size);
    k->dscores = recurrent_take(s, c->T * B * c->S, size);
    k->near = decoder_near_take(c, threads, s);
    if (c->additive) {
        k->du = recurrent_take(s, B * c->A, size);
        k->near_du = recurrent_take(s, B * k->near.width, size);
        k->near_dkeys = recurrent_take(s, B * k->near.size, size);
    }
    k->context_panels = recurrent_take(s, matmul_up(c->M, cols) * GH, size);
    k->state_panels = recurrent_take(s, matmul_up(H, cols) * GH, size);
    if (c->projects) k->query_panels = recurrent_take(s, matmul_up(H, cols) * c->A, size);
    k->own_size = matmul_up(c->S + c->T * c->M * (c->additive ? 1 : 2), 64);
    k->own = recurrent_take(s, threads * k->own_size, size);
    k->rows = recurrent_take(s, B, sizeof(recurrent_back_row));
    k->work_together = decoder_work_together(c, N, GH, threads);
    k->work_alone = (matmul_work(kernels, c->S, c->M, c->T, 0, 1) + 63) / 64 * 64;
    k->work = recurrent_take(s, (ptrdiff_t)(k->work_together + (size_t)threads * k->work_alone), 1);
}

size_t FSQ_FN(attention_decoder_backward_work)(const fsq_attention_decoder_call *call, int threads) {
    recurrent_scratch s = {NULL, 0};
    decoder_backward_run k = {.call = NULL};
    decoder_backward_layout(&k, call, threads, &s);
    return s.used + 64;
}

void FSQ_FN(attention_decoder_backward)(const fsq_attention_decoder_call *call, const fsq_attention_decoder_arrays *arrays,
                                        const fsq_attention_decoder_gradients *gradients, int threads, void *work) {
    recurrent_scratch s = {recurrent_line(work), 0};
    decoder_backward_run k = {.arrays = arrays, .gradients = gradients};
    decoder_backward_layout(&k, call, threads, &s);
    fsq_parallel(fsq_threads_for(2 * decoder_cost(call), threads), decoder_backward_body, &k);
}
