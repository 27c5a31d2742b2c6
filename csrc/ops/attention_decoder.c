/* attention_decoder.c - a decoder with attention over a whole target sequence, one parallel region (Bahdanau et al. 2015).
 *
 * Before the loop: x's part of the cell's sums, for all steps at once. In it each worker takes its rows of the batch through the whole
 * sequence without a barrier: query, scores, softmax, context, and the tile of kernels/recurrent.c, which goes on from x's sums with the
 * context and the state. After it: the outputs, one product. A sum of the cell is one chain over biases, x, context and state.
 * Bound by FLOP; with few rows by the bytes of the weights, which each worker reads in each step. */
#include "recurrent.h"

#include <float.h>

/* Where the parts of the packed weights begin, in reals: tiles of W_ih's columns of x; tiles of those of the context and of W_hh; panels. */
typedef struct {
    ptrdiff_t state, query, out, size;
} decoder_layout;

/* Additive scores by exponentials (kernels/additive_attention.c), which a key needs once for all steps. Scratch. */
typedef struct {
    ptrdiff_t width, stride, size;                          /* A in whole vectors; rows of a panel of keys; its reals */
    real *keys;                                             /* (B) panels */
    unsigned char *far;                                     /* (B) rows with a far key, or with a u that is not finite: tanh itself */
    real *own;                                              /* for each worker u and a query, both padded */
    unsigned char *flags;                                   /* for each worker (S + 1) */
} decoder_near;

typedef struct {
    const fsq_attention_decoder_call *call;
    const fsq_attention_decoder_arrays *arrays;
    fsq_recurrent_call cell;                                /* the call of the cell, whose input is the context */
    recurrent_order order;
    decoder_layout layout;
    /* scratch */
    decoder_near near;
    real *h_0, *c_0;                                        /* (B, H) by place */
    real *sums;                                             /* (N, tile_width): x's part, each worker's rows one after the other */
    real *outputs;                                          /* (N, H) where the rows are ordered */
    recurrent_row *rows;                                    /* (B) by place */
    const real **x_rows;                                    /* (N) in the order of sums */
    void *work;                                             /* matmul's */
} decoder_forward_run;

static fsq_recurrent_call decoder_cell(const fsq_attention_decoder_call *c) {
    return (fsq_recurrent_call){.cell = c->cell, .T = c->T, .B = c->B, .I = c->M, .H = c->H, .P = c->H, .from = 0, .to = c->T, .lengths = c->lengths};
}

/* The steps of all rows together. */
static ptrdiff_t decoder_steps(const fsq_attention_decoder_call *c) {
    ptrdiff_t N = c->lengths ? 0 : c->T * c->B;
    for (ptrdiff_t b = 0; c->lengths && b < c->B; b++) N += (ptrdiff_t)c->lengths[b];
    return N;
}

static ptrdiff_t decoder_memory_length(const fsq_attention_decoder_call *c, ptrdiff_t b) {
    return c->memory_lengths ? (ptrdiff_t)c->memory_lengths[b] : c->S;
}

/* ---------------------------------------------------------------- packing */

static decoder_layout decoder_layout_of(const fsq_attention_decoder_call *c) {
    const FSQ_FN(kernels) *k = FSQ_FN(kernels_now)();
    const fsq_recurrent_call cell = decoder_cell(c);
    ptrdiff_t G = call_gates(&cell), width = tile_blocks(c->H) * k->lanes;
    decoder_layout at = {.state = width * (tile_starts(&cell) + c->I * G)};
    at.query = at.state + width * (tile_starts(&cell) + (c->M + c->H) * G);
    at.out = at.query + (c->projects ? matmul_up(c->A, k->gemm_cols) * c->H : 0);
    at.size = at.out + matmul_up(c->H, k->gemm_cols) * (c->H + c->M);
    return at;
}

size_t FSQ_FN(attention_decoder_packed_size)(const fsq_attention_decoder_call *call) { return (size_t)decoder_layout_of(call).size; }

typedef struct {
    real *packed;
    const fsq_attention_decoder_call *call;
    const fsq_attention_decoder_weights *weights;
} decoder_pack_args;

static void decoder_pack_body(const fsq_team *team, void *context) {
    const decoder_pack_args *a = context;
    const fsq_attention_decoder_call *c = a->call;
    const fsq_attention_decoder_weights *w = a->weights;
    const FSQ_FN(kernels) *k = FSQ_FN(kernels_now)();
    const fsq_recurrent_call cell = decoder_cell(c);
    const decoder_layout at = decoder_layout_of(c);
    const real *w_ih = w->w_ih;
    int gates = (int)call_gates(&cell), starts = tile_starts(&cell);
    ptrdiff_t from, to, row = c->I + c->M;
    fsq_share(team, tile_blocks(c->H), 1, &from, &to);
    k->recurrent_pack_blocks(a->packed, w_ih, row, w->w_hh, w->b_ih, w->b_hh, gates, starts, c->I, 0, c->H, from, to);
    k->recurrent_pack_blocks(a->packed + at.state, w_ih + c->I, row, w->w_hh, w->b_ih, w->b_hh, gates, starts, c->M, c->H, c->H, from, to);
    if (c->projects) pack_panels(team, a->packed + at.query, w->w_query, c->A, c->H);
    pack_panels(team, a->packed + at.out, w->w_out, c->H, c->H + c->M);
}

void FSQ_FN(attention_decoder_pack)(real *packed, const fsq_attention_decoder_call *call, const fsq_attention_decoder_weights *weights, int threads) {
    decoder_pack_args a = {packed, call, weights};
    fsq_parallel(fsq_threads_for((double)decoder_layout_of(call).size * sizeof(real) / 8, threads), decoder_pack_body, &a);
}

/* ---------------------------------------------------------------- exponentials of the additive score */

static decoder_near decoder_near_take(const fsq_attention_decoder_call *c, int threads, recurrent_scratch *s) {
    decoder_near n = {.width = matmul_up(c->A, FSQ_FN(kernels_now)()->lanes), .stride = c->S | 1};
    n.size = n.width * n.stride;
    if (!c->additive) return n;
    n.keys = recurrent_take(s, c->B * n.size, sizeof(real));
    n.far = recurrent_take(s, c->B, 1);
    n.own = recurrent_take(s, threads * 2 * matmul_up(n.width, 16), sizeof(real));
    n.flags = recurrent_take(s, threads * (c->S + 1), 1);
    return n;
}

static real *decoder_near_u(const decoder_near *n, int rank) { return n->own + rank * 2 * matmul_up(n->width, 16); }
static real *decoder_near_query(const decoder_near *n, int rank) { return decoder_near_u(n, rank) + matmul_up(n->width, 16); }

/* A worker's u, and the keys of its places [r0, r1). */
static void decoder_near_begin(const decoder_near *n, const fsq_attention_decoder_call *c, const fsq_attention_decoder_arrays *a,
                               const recurrent_order *o, ptrdiff_t r0, ptrdiff_t r1, int rank) {
    const FSQ_FN(kernels) *k = FSQ_FN(kernels_now)();
    unsigned char *flags = n->flags + rank * (c->S + 1), wild;
    real *u = decoder_near_u(n, rank);
    memset(u, 0, (size_t)n->width * sizeof(real));
    memcpy(u, a->weights.u, (size_t)c->A * sizeof(real));
    k->additive_beyond(&wild, u, 1, c->A, sizeof(real) == 4 ? (real)FLT_MAX : (real)DBL_MAX);
    for (ptrdiff_t r = r0; r < r1; r++) {
        ptrdiff_t b = order_row(o, r), S = decoder_memory_length(c, b);
        const real *keys = (const real *)a->keys + b * c->S * c->A;
        k->additive_beyond(flags, keys, S, c->A, k->additive_range);
        n->far[b] = wild || memchr(flags, 1, (size_t)S);
        if (!n->far[b]) k->additive_panel(n->keys + b * n->size, n->stride, keys, flags, S, c->A);
    }
}

/* The exponentials of a query; NULL where it, or a key of row b, is far. Its flag stands behind those of the keys. */
static const real *decoder_near_of(const decoder_near *n, const fsq_attention_decoder_call *c, const real *query, ptrdiff_t b, int rank) {
    const FSQ_FN(kernels) *k = FSQ_FN(kernels_now)();
    unsigned char *far = n->flags + rank * (c->S + 1) + c->S;
    real *panel = decoder_near_query(n, rank);
    if (n->far[b]) return NULL;
    k->additive_beyond(far, query, 1, c->A, k->additive_range);
    if (*far) return NULL;
    k->additive_panel(panel, 1, query, far, 1, c->A);
    return panel;
}

/* ---------------------------------------------------------------- one step of one worker */

typedef struct {
    const decoder_forward_run *run;
    int rank;
    ptrdiff_t r0, r1, n;                                    /* places [r0, r1); at this time [r0, n) */
    ptrdiff_t time, row;                                    /* row: of place 0, in what has one for each step */
    ptrdiff_t before;                                       /* that of the time before */
    real *sums;
} decoder_forward_at;

/* s_{j-1} of place r, and how far apart those of the places are. */
static const real *decoder_state(const decoder_forward_at *at, ptrdiff_t r, ptrdiff_t *apart) {
    const fsq_attention_decoder_call *c = at->run->call;
    *apart = at->time ? c->H + c->M : c->H;
    return (at->time ? (const real *)at->run->arrays->both + at->before * *apart : at->run->h_0) + r * *apart;
}

/* a and c of place r. */
static void decoder_attend(const decoder_forward_at *at, ptrdiff_t r, const real *query) {
    const FSQ_FN(kernels) *k = FSQ_FN(kernels_now)();
    const decoder_forward_run *f = at->run;
    const fsq_attention_decoder_call *c = f->call;
    ptrdiff_t b = order_row(&f->order, r), S = decoder_memory_length(c, b);
    real *a = (real *)f->arrays->a + (at->time * c->B + b) * c->S;
    real *context = (real *)f->arrays->both + (at->row + r) * (c->H + c->M) + c->H;
    const real *memory = (const real *)f->arrays->memory + b * c->S * c->M;
    memset(a + S, 0, (size_t)(c->S - S) * sizeof(real));
    if (S == 0) {
        memset(context, 0, (size_t)c->M * sizeof(real));
        return;
    }
    if (c->additive) {
        const real *near = decoder_near_of(&f->near, c, query, b, at->rank);
        if (near) k->additive_scores(a, S, near, 1, f->near.keys + b * f->near.size, f->near.stride, decoder_near_u(&f->near, at->rank), 1, S, c->A);
        else k->additive_scores_far(a, query, (const real *)f->arrays->keys + b * c->S * c->A, f->arrays->weights.u, S, c->A);
    } else {
        k->gemm_turned(a, S, query, c->A, 1, memory, c->M, 1, S, c->M, 0, NULL, FSQ_IDENTITY);
        k->scale(a, S, (real)c->scale);
    }
    k->softmax_forward(a, a, 1, S);
    k->gemm_row(context, a, 1, memory, c->M, c->M, S, 0, NULL, FSQ_IDENTITY);
}

static void decoder_row(const decoder_forward_at *at, recurrent_row *row, ptrdiff_t r) {
    const decoder_forward_run *f = at->run;
    const fsq_attention_decoder_call *c = f->call;
    const fsq_attention_decoder_arrays *a = f->arrays;
    ptrdiff_t now = at->row + r, apart;
    real *both = (real *)a->both + now * (c->H + c->M);
    *row = (recurrent_row){.x = both + c->H, .sums = at->sums + (r - at->r0) * tile_width(&f->cell), .h = both,
                           .cache = a->gates ? (real *)a->gates + now * 4 * c->H : NULL};
    row->h_in = row->h_before = decoder_state(at, r, &apart);
    if (c->cell != FSQ_LSTM) return;
    row->c = (real *)a->cells + now * c->H;
    row->c_before = at->time ? (const real *)a->cells + (at->before + r) * c->H : f->c_0 + r * c->H;
}

static void decoder_step(const decoder_forward_at *at) {
    const FSQ_FN(kernels) *k = FSQ_FN(kernels_now)();
    const decoder_forward_run *f = at->run;
    const fsq_attention_decoder_call *c = f->call;
    ptrdiff_t r0 = at->r0, n = at->n - r0, apart;
    const real *packed = f->arrays->packed, *state = decoder_state(at, r0, &apart), *queries = state;
    if (c->projects) {
        real *q = (real *)f->arrays->queries + (at->row + r0) * c->A;
        panel_product(q, c->A, state, apart, n, c->H, packed + f->layout.query, c->H, 0, c->A, 0, at->time & 1);
        queries = q, apart = c->A;
    }
    for (ptrdiff_t r = r0; r < at->n; r++) {
        decoder_attend(at, r, queries + (r - r0) * apart);
        decoder_row(at, f->rows + r, r);
    }
    double bytes = (double)tile_width(&f->cell) * (double)(c->M + c->H) * sizeof(real);
    recurrent_step s = {.rows = f->rows + r0, .n = n, .I = c->M, .H = c->H, .P = c->H, .hoisted = 1, .fed = 1,
                        .fetch_ahead = bytes > recurrent_l2_bytes && n > 3};
    k->recurrent_forward_blocks[c->cell](&s, packed + f->layout.state, 0, tile_blocks(c->H), at->time & 1);
}

/* ---------------------------------------------------------------- what is done for all steps at once */

/* The state that the places start from. */
static void decoder_begin(const decoder_forward_run *f, ptrdiff_t r0, ptrdiff_t r1) {
    ptrdiff_t H = f->call->H;
    const real *given[2] = {f->arrays->h_0, f->arrays->c_0};
    real *to[2] = {f->h_0, f->c_0};
    for (int i = 0; i < 2; i++)
        for (ptrdiff_t r = r0; to[i] && r < r1; r++) {
            if (given[i]) memcpy(to[i] + r * H, given[i] + order_row(&f->order, r) * H, (size_t)H * sizeof(real));
            else memset(to[i] + r * H, 0, (size_t)H * sizeof(real));
        }
}

/* Biases and x's part of the sums of places [r0, r1), time by time, from `first` on. */
static void decoder_input(const decoder_forward_run *f, ptrdiff_t r0, ptrdiff_t r1, ptrdiff_t first) {
    const fsq_attention_decoder_call *c = f->call;
    const real **x_rows = f->x_rows + first;
    ptrdiff_t n = 0;
    for (ptrdiff_t t = 0; t < f->order.steps; t++) {
        ptrdiff_t alive = order_alive(&f->order, t), end = alive < r1 ? alive : r1;
        for (ptrdiff_t r = r0; r < end; r++) x_rows[n++] = (const real *)f->arrays->x + (t * c->B + order_row(&f->order, r)) * c->I;
    }
    FSQ_FN(kernels_now)()->recurrent_input_blocks[c->cell](f->sums + first * tile_width(&f->cell), tile_width(&f->cell), x_rows, f->arrays->packed, n, c->I, 0,
                                                          0, tile_blocks(c->H));
}

/* o of all steps, then each to its place; the last states. */
static void decoder_outputs(const fsq_team *team, const decoder_forward_run *f) {
    const fsq_attention_decoder_call *c = f->call;
    const fsq_attention_decoder_arrays *a = f->arrays;
    ptrdiff_t H = c->H, width = H + c->M, from, to;
    real *outputs = f->outputs ? f->outputs : a->outputs;
    matmul_args product = {.c = outputs, .a = a->both, .packed = (const real *)a->packed + f->layout.out, .bias = a->weights.b_out, .M = f->order.rows, .N = H,
                           .K = width, .c_row = H, .a_row = width, .a_col = 1, .function = FSQ_TANH};
    matmul_team(team, &product, f->work);
    fsq_barrier(team);
    for (ptrdiff_t t = 0; f->outputs && t < f->order.steps; t++) {
        fsq_share(team, order_alive(&f->order, t), 1, &from, &to);
        for (ptrdiff_t r = from; r < to; r++)
            memcpy((real *)a->outputs + (t * c->B + order_row(&f->order, r)) * H, outputs + (order_start(&f->order, t) + r) * H, (size_t)H * sizeof(real));
    }
    fsq_share(team, c->B, 1, &from, &to);
    for (ptrdiff_t r = from; r < to; r++) {
        ptrdiff_t b = order_row(&f->order, r), steps = order_length(&f->order, r), last = steps ? order_start(&f->order, steps - 1) + r : 0;
        memcpy((real *)a->h_n + b * H, steps ? (const real *)a->both + last * width : f->h_0 + r * H, (size_t)H * sizeof(real));
        if (f->c_0) memcpy((real *)a->c_n + b * H, steps ? (const real *)a->cells + last * H : f->c_0 + r * H, (size_t)H * sizeof(real));
    }
}

/* Steps of the places before r0: where this worker's sums begin. */
static ptrdiff_t decoder_first(const recurrent_order *o, ptrdiff_t r0) {
    ptrdiff_t first = 0;
    for (ptrdiff_t r = 0; r < r0; r++) first += order_length(o, r);
    return first;
}

static void decoder_forward_body(const fsq_team *team, void *context) {
    const decoder_forward_run *f = context;
    decoder_forward_at at = {.run = f, .rank = team->rank};
    fsq_fp_state fp = fsq_flush_denormals();
    order_share(&f->order, team, &at.r0, &at.r1);
    ptrdiff_t first = decoder_first(&f->order, at.r0), width = tile_width(&f->cell);
    decoder_begin(f, at.r0, at.r1);
    if (f->call->additive) decoder_near_begin(&f->near, f->call, f->arrays, &f->order, at.r0, at.r1, at.rank);
    if (at.r0 < at.r1) decoder_input(f, at.r0, at.r1, first);
    at.sums = f->sums + first * width;
    for (; at.time < f->order.steps; at.time++) {
        ptrdiff_t alive = order_alive(&f->order, at.time);
        at.n = alive < at.r1 ? alive : at.r1;
        if (at.n <= at.r0) break;                           /* falling lengths: no later one either */
        at.row = order_start(&f->order, at.time);
        decoder_step(&at);
        at.before = at.row;
        at.sums += (at.n - at.r0) * width;
    }
    fsq_barrier(team);
    decoder_outputs(team, f);
    fsq_restore_denormals(fp);
}

/* ---------------------------------------------------------------- the call */

/* Lays out the scratch; `order` points into the run, which must stay where it is. */
static void decoder_forward_layout(decoder_forward_run *f, const fsq_attention_decoder_call *c, int threads, recurrent_scratch *s) {
    ptrdiff_t N = decoder_steps(c);
    f->call = c;
    f->cell = decoder_cell(c);
    f->layout = decoder_layout_of(c);
    f->order = order_make(&f->cell, 0, s);
    f->near = decoder_near_take(c, threads, s);
    f->h_0 = recurrent_take(s, c->B * c->H, sizeof(real));
    if (c->cell == FSQ_LSTM) f->c_0 = recurrent_take(s, c->B * c->H, sizeof(real));
    f->sums = recurrent_take(s, N * tile_width(&f->cell), sizeof(real));
    if (c->lengths) f->outputs = recurrent_take(s, N * c->H, sizeof(real));
    f->rows = recurrent_take(s, c->B, sizeof(recurrent_row));
    f->x_rows = recurrent_take(s, N, sizeof(real *));
    f->work = recurrent_take(s, (ptrdiff_t)matmul_work(FSQ_FN(kernels_now)(), N, c->H, c->H + c->M, 1, threads), 1);
}

size_t FSQ_FN(attention_decoder_forward_work)(const fsq_attention_decoder_call *call, int threads) {
    recurrent_scratch s = {NULL, 0};
    decoder_forward_run f = {.call = NULL};
    decoder_forward_layout(&f, call, threads, &s);
    return s.used + 64;
}

/* Nanoseconds on one thread: multiply-adds of all products, and the additive scores. */
static double decoder_cost(const fsq_attention_decoder_call *c) {
    const fsq_recurrent_call cell = decoder_cell(c);
    double query = c->projects ? (double)c->A * (double)c->H : 0, step = (double)(call_gates(&cell) * c->H) * (double)(c->I + c->M + c->H);
    double products = step + (double)c->H * (double)(c->H + c->M) + query + 2 * (double)c->S * (double)c->M;
    return (double)decoder_steps(c) * (2 * products / FSQ_FN(kernels_now)()->flops_per_ns + (c->additive ? (double)c->S * (double)c->A / 8 : 0));
}

void FSQ_FN(attention_decoder_forward)(const fsq_attention_decoder_call *call, const fsq_attention_decoder_arrays *arrays, int threads, void *work) {
    recurrent_scratch s = {recurrent_line(work), 0};
    decoder_forward_run f = {.arrays = arrays};
    decoder_forward_layout(&f, call, threads, &s);
    fsq_parallel(fsq_threads_for(decoder_cost(call), threads), decoder_forward_body, &f);
}

#include "attention_decoder_backward.c"
