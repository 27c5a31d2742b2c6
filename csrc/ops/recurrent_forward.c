/* recurrent_forward.c - a recurrent layer over a whole sequence, its directions and threads in one parallel region.
 *
 * A step is a pass over the packed panels (kernels/recurrent.c) or, where sums go through memory, the stages of recurrent_gated.c or
 * recurrent_norm.c; a projection (recurrent_projection.c) may follow. The input product is either part of each step's chain
 * (k over [x_t, h_{t-1}]) or made before for a chunk of time, which spares re-reading W_ih where the weights do not fit the cache.
 * Both are the same chain of additions: same bits. */

/* ---------------------------------------------------------------- tables of rows */

static const real *forward_state(const recurrent_forward_run *f, const void *state, ptrdiff_t b, ptrdiff_t width) {
    return state ? (const real *)state + b * width : f->masks.zeros;
}

/* Place r's row at the first of its times. */
static void forward_first_row(const recurrent_forward_run *f, recurrent_row *row, ptrdiff_t r) {
    const fsq_recurrent_call *c = f->call;
    const fsq_recurrent_direction *d = f->direction;
    ptrdiff_t b = order_row(&f->order, r), at = order_first(&f->order, r) * c->B + b;
    ptrdiff_t width = fsq_recurrent_cache_width(c);
    *row = (recurrent_row){
        .x = (const real *)d->x + at * c->I, .h_before = forward_state(f, d->h_0, b, c->P), .c_before = forward_state(f, d->c_0, b, c->H),
        .drop = masks_drop(&f->masks, c, b), .zone_h = masks_zone_h(&f->masks, c, r), .zone_c = masks_zone_c(&f->masks, c, r),
        .h = (real *)d->y + at * d->y_row, .c = d->cells ? (real *)d->cells + at * c->H : d->c_n ? (real *)d->c_n + b * c->H : NULL,
        .hidden = f->hidden ? f->hidden + r * c->H : NULL, .cache = d->cache && width ? (real *)d->cache + at * width : NULL};
    row->h_in = row->h_before;
}

/* From one step to the next every array moves by the rows of a batch, in the reverse direction backwards. */
static void forward_next_row(const recurrent_forward_run *f, recurrent_row *row, ptrdiff_t rows, ptrdiff_t width) {
    const fsq_recurrent_direction *d = f->direction;
    row->x += rows * f->call->I;
    row->h_in = row->h_before = row->h;
    row->h += rows * d->y_row;
    row->c_before = row->c;
    if (d->cells) row->c += rows * f->call->H;
    if (row->cache) row->cache += rows * width;
}

static void forward_rows(recurrent_forward_at *at) {
    const recurrent_forward_run *f = at->run;
    const fsq_recurrent_call *c = f->call;
    ptrdiff_t B = f->order.reverse ? -c->B : c->B, width = fsq_recurrent_cache_width(c), t = at->time;
    for (ptrdiff_t r = at->share.r0; r < at->n; r++) {
        recurrent_row *row = at->rows + r;
        if (r < at->known) forward_next_row(f, row, B, width);
        else forward_first_row(f, row, r);
        if (order_reset(&f->order, t, r)) row->h_in = row->h_before = row->c_before = f->masks.zeros;
        if (f->dense) {
            row->h_in = f->h_next[t & 1] + r * c->P;
            row->h_next = f->h_next[(t + 1) & 1] + r * c->P;
        }
    }
    at->known = at->n;
}

/* Where the next step starts from zeros, its product reads them. */
static void forward_cut(const recurrent_forward_at *at) {
    for (ptrdiff_t r = at->share.r0; r < at->n; r++)
        if (order_cut(&at->run->order, at->time, r))
            memset(at->rows[r].h_next + at->share.p0, 0, (size_t)(at->share.p1 - at->share.p0) * sizeof(real));
}

/* The dropout mask, and d h_0 for the first product. */
static void forward_prepare(const recurrent_forward_run *f, const recurrent_share *share) {
    const fsq_recurrent_call *c = f->call;
    for (ptrdiff_t r = share->r0; r < share->r1; r++) {
        ptrdiff_t b = order_row(&f->order, r);
        const real *h = forward_state(f, f->direction->h_0, b, c->P);
        if (order_length(&f->order, r) == 0) continue;
        ptrdiff_t first = order_first(&f->order, r);
        real *mask = masks_drop(&f->masks, c, b), *to = f->h_next[first & 1] + r * c->P;
        masks_draw_drop(&f->masks, c, f->direction, b, share->p0, share->p1);
        if (order_reset(&f->order, first, r)) h = f->masks.zeros;
        for (ptrdiff_t p = share->p0; p < share->p1; p++) to[p] = mask ? h[p] * mask[p] : h[p];
    }
}

/* ---------------------------------------------------------------- steps */

/* Does this worker take all rows? Then the sums of all times follow each other, and are one product. */
static int forward_whole(const recurrent_forward_at *at) { return at->share.r0 == 0 && at->share.r1 == at->run->call->B; }

/* Where the sums of time t begin. Workers that share the rows do not wait for each other between chunks, so each row has its own place. */
static ptrdiff_t forward_sums_row(const recurrent_forward_at *at, ptrdiff_t t) {
    const recurrent_order *o = &at->run->order;
    return forward_whole(at) ? order_start(o, t) - order_start(o, at->begin) : (t - at->begin) * o->call->B;
}

/* Blocks of the tile up to a unit: a worker's units begin with a block, or, where there are fewer blocks than workers, at H. */
static ptrdiff_t tile_blocks(ptrdiff_t unit) {
    ptrdiff_t lanes = FSQ_FN(kernels_now)()->lanes;
    return (unit + lanes - 1) / lanes;
}

static ptrdiff_t tile_width(const fsq_recurrent_call *c) { return tile_blocks(c->H) * FSQ_FN(kernels_now)()->lanes * call_gates(c); }

static void tiled_input(const recurrent_forward_run *f, const recurrent_share *share, ptrdiff_t sums_row, const real **x_rows, ptrdiff_t n) {
    const FSQ_FN(kernels) *k = FSQ_FN(kernels_now)();
    const fsq_recurrent_call *c = f->call;
    k->recurrent_input_blocks[c->cell](f->sums + sums_row * tile_width(c), tile_width(c), x_rows, f->direction->packed, n, c->I, c->P,
                                       tile_blocks(share->u0), tile_blocks(share->u1));
}

/* The part of h that other workers have just written is fetched all at once, not line by line as the chain comes to it. */
static void forward_fetch(const recurrent_forward_at *at) {
    ptrdiff_t P = at->run->call->P, line = 64 / (ptrdiff_t)sizeof(real);
    for (ptrdiff_t r = at->share.r0; r < at->n; r++)
        for (ptrdiff_t p = 0; p < P; p += line) __builtin_prefetch(at->rows[r].h_in + p, 0, 3);
}

static void tiled_step(const recurrent_forward_at *at) {
    const FSQ_FN(kernels) *k = FSQ_FN(kernels_now)();
    const recurrent_forward_run *f = at->run;
    const fsq_recurrent_call *c = f->call;
    ptrdiff_t from = tile_blocks(at->share.u0), to = tile_blocks(at->share.u1);
    double bytes = (double)((to - from) * k->lanes * call_gates(c) * (c->I + c->P)) * sizeof(real);
    if (f->chunk)
        for (ptrdiff_t r = at->share.r0; r < at->n; r++)
            at->rows[r].sums = f->sums + (forward_sums_row(at, at->time) + r) * tile_width(c);
    recurrent_step s = {.rows = at->rows + at->share.r0, .n = at->n - at->share.r0, .I = c->I, .H = c->H, .P = c->P,
                        .peepholes = f->direction->weights.w_ch, .relu = c->cell == FSQ_RNN_RELU, .hoisted = f->chunk > 0,
                        .fetch_ahead = bytes > recurrent_l2_bytes && at->n - at->share.r0 > 3};     /* fewer rows read as fast as they can anyway */
    k->recurrent_forward_blocks[c->cell](&s, f->direction->packed, from, to, at->time & 1);
}

/* The input product of the times [at->begin, end), for this worker's places and units. */
static void forward_input(const recurrent_forward_at *at, ptrdiff_t end) {
    const recurrent_forward_run *f = at->run;
    const fsq_recurrent_call *c = f->call;
    const recurrent_share *share = &at->share;
    int whole = forward_whole(at);
    ptrdiff_t n = 0;
    for (ptrdiff_t t = at->begin; t < end; t++) {
        ptrdiff_t alive = order_alive(&f->order, t), last = alive < share->r1 ? alive : share->r1;
        for (ptrdiff_t r = share->r0; r < last; r++) at->x_rows[n++] = (const real *)f->direction->x + (t * c->B + order_row(&f->order, r)) * c->I;
        if (n == 0 || (whole && t + 1 < end)) continue;
        ptrdiff_t sums_row = whole ? 0 : forward_sums_row(at, t) + share->r0;
        if (call_tiled(c)) tiled_input(f, share, sums_row, at->x_rows, n);
        else staged_input(at, sums_row, at->x_rows, n);
        n = 0;
    }
}

static void forward_step(recurrent_forward_at *at) {
    const recurrent_forward_run *f = at->run;
    const fsq_recurrent_call *c = f->call;
    forward_rows(at);
    if (f->split == RECURRENT_UNITS) forward_fetch(at);
    masks_draw_zones(&f->masks, &f->order, f->direction, &at->share, at->time, at->n);
    if (call_gated(c)) gated_step(at);
    else if (c->layer_norm) norm_step(at);
    else tiled_step(at);
    if (call_projects(c)) projection_step(at);
    if (f->dense && c->reset) forward_cut(at);
    if (f->split == RECURRENT_UNITS) fsq_barrier(at->team);
}

/* h_n and c_n of places [r0, r1). */
static void forward_final(const recurrent_forward_run *f, ptrdiff_t r0, ptrdiff_t r1) {
    const fsq_recurrent_call *c = f->call;
    const fsq_recurrent_direction *d = f->direction;
    for (ptrdiff_t r = r0; r < r1; r++) {
        ptrdiff_t b = order_row(&f->order, r), n = order_length(&f->order, r), at = n ? order_last(&f->order, r) * c->B + b : 0;
        memmove((real *)d->h_n + b * c->P, n ? (const real *)d->y + at * d->y_row : forward_state(f, d->h_0, b, c->P), (size_t)c->P * sizeof(real));
        if (!d->c_n || (n && !d->cells)) continue;
        memmove((real *)d->c_n + b * c->H, n ? (const real *)d->cells + at * c->H : forward_state(f, d->c_0, b, c->H), (size_t)c->H * sizeof(real));
    }
}

/* This worker's part of every step. Units go in whole cache lines of h, or in whole panels where products are not tiled. */
static recurrent_share forward_share(const recurrent_forward_run *f, const fsq_team *team) {
    const FSQ_FN(kernels) *k = FSQ_FN(kernels_now)();
    const fsq_recurrent_call *c = f->call;
    recurrent_share s = {0, c->B, 0, c->H, 0, c->P};
    if (f->split == RECURRENT_ROWS) order_share(&f->order, team, &s.r0, &s.r1);
    if (f->split == RECURRENT_UNITS) {
        fsq_share(team, c->H, !call_tiled(c) ? k->gemm_cols : k->lanes < 4 ? 4 : k->lanes, &s.u0, &s.u1);
        s.p0 = s.u0, s.p1 = s.u1;
        if (call_projects(c)) fsq_share(team, c->P, k->gemm_cols, &s.p0, &s.p1);
    }
    return s;
}

static recurrent_forward_at forward_open(const fsq_team *team, const recurrent_forward_run *f) {
    recurrent_forward_at at = {.team = team, .run = f, .share = forward_share(f, team)};
    ptrdiff_t B = f->call->B, own = f->split == RECURRENT_ALONE ? 0 : team->rank;
    at.rows = f->rows + (f->split == RECURRENT_UNITS ? own : 0) * B;
    at.x_rows = f->x_rows + own * f->chunk * B;
    at.known = at.share.r0;
    if (f->dense) forward_prepare(f, &at.share);
    if (f->dense && f->split == RECURRENT_UNITS) fsq_barrier(team);
    return at;
}

/* Steps [s0, s1). Where chunks of the input product are made, s0 begins one. */
static void forward_steps(recurrent_forward_at *at, ptrdiff_t s0, ptrdiff_t s1) {
    const recurrent_forward_run *f = at->run;
    const recurrent_order *o = &f->order;
    for (ptrdiff_t s = s0; s < s1; s++) {
        at->time = o->reverse ? o->steps - 1 - s : s;
        ptrdiff_t alive = order_alive(o, at->time), place = f->chunk ? at->time % f->chunk : 0;
        at->n = alive < at->share.r1 ? alive : at->share.r1;
        if (f->chunk && (s == s0 || place == (o->reverse ? f->chunk - 1 : 0))) {
            ptrdiff_t end = at->time - place + f->chunk;
            at->begin = at->time - place;
            forward_input(at, end < o->steps ? end : o->steps);
        }
        if (at->n > at->share.r0) forward_step(at);         /* always so where others wait at a barrier: there r0 = 0 */
    }
}

static void forward_close(const recurrent_forward_at *at) {
    ptrdiff_t r0 = at->share.r0, r1 = at->share.r1;
    if (at->run->split == RECURRENT_UNITS) fsq_share(at->team, at->run->call->B, 1, &r0, &r1);     /* the last barrier has been passed */
    forward_final(at->run, r0, r1);
}

static void forward_direction(const fsq_team *team, const recurrent_forward_run *f) {
    if (f->split == RECURRENT_ALONE && team->rank) return;
    recurrent_forward_at at = forward_open(team, f);
    forward_steps(&at, 0, f->order.steps);
    forward_close(&at);
}

/* ---------------------------------------------------------------- the call */

/* Lays out a direction's scratch; fills what does not depend on the threads. */
static recurrent_forward_run forward_run(const fsq_recurrent_call *c, const fsq_recurrent_direction *d, int threads, recurrent_scratch *s) {
    recurrent_forward_run f = {.call = c, .direction = d, .dense = call_drops(c) || !call_tiled(c)};
    ptrdiff_t chunk = recurrent_input_chunk(c, RECURRENT_ALONE, 1);
    f.order = order_make(c, d ? d->reverse : 0, s);
    f.masks = masks_make(c, s);
    for (int parity = 0; f.dense && parity < 2; parity++) f.h_next[parity] = recurrent_take(s, c->B * c->P, sizeof(real));
    if (call_projects(c)) {
        f.hidden = recurrent_take(s, c->B * c->H, sizeof(real));
        f.projected = recurrent_take(s, c->B * c->P, sizeof(real));
    }
    if (!call_tiled(c)) f.inner = recurrent_take(s, c->B * recurrent_inner_width(c), sizeof(real));
    if (!call_tiled(c) && c->lengths) f.x = recurrent_take(s, threads * staged_rows * c->I, sizeof(real));
    if (c->layer_norm) f.starts = norm_starts(c, d, s);
    f.sums = recurrent_take(s, chunk * c->B * (call_tiled(c) ? tile_width(c) : call_gates(c) * c->H), sizeof(real));
    f.rows = recurrent_take(s, threads * c->B, sizeof(recurrent_row));
    f.x_rows = recurrent_take(s, threads * chunk * c->B, sizeof(real *));
    return f;
}

typedef struct {
    recurrent_forward_run run[2];
    int D, groups;
} forward_args;

static void forward_body(const fsq_team *team, void *context) {
    const forward_args *a = context;
    fsq_team part;
    int groups = team->size < a->groups ? 1 : a->groups, group = fsq_team_part(team, groups, &part);
    fsq_fp_state fp = fsq_flush_denormals();
    for (int d = group; d < a->D; d += groups) forward_direction(&part, &a->run[d]);
    fsq_restore_denormals(fp);
}

size_t FSQ_FN(recurrent_forward_work)(const fsq_recurrent_call *call, int D, int threads) {
    recurrent_scratch s = {NULL, 0};
    forward_run(call, NULL, threads, &s);
    return D * s.used + 64;
}

void FSQ_FN(recurrent_forward)(const fsq_recurrent_call *call, const fsq_recurrent_direction *directions, int D, int threads, void *work) {
    forward_args a = {.D = D};
    recurrent_scratch s = {recurrent_line(work), 0};
    for (int d = 0; d < D; d++) a.run[d] = forward_run(call, directions + d, threads, &s);
    recurrent_plan plan = recurrent_plan_of(&a.run[0].order, D, 1, threads);
    a.groups = plan.groups;
    for (int d = 0; d < D; d++) {
        a.run[d].split = plan.split;
        a.run[d].chunk = recurrent_input_chunk(call, plan.split, plan.threads / plan.groups);
    }
    if (a.run[0].order.rows == 0) plan.threads = 1;
    fsq_parallel(plan.threads, forward_body, &a);
}
