/* lstm.c - an LSTM over a whole sequence, forward and back through time, in one parallel region each.
 *
 * Forward. Each time step is one pass over the packed panels (kernels/lstm.c). Work is shared in one of three ways (lstm_plan):
 *   alone    one thread
 *   rows     each worker takes batch rows through the whole sequence: no barrier, but every worker streams all weights
 *   units    each worker owns unit blocks, so its share of the weights stays in its cache: one barrier per step
 * The input product is either part of each step's chain (k over [x_t, h_{t-1}]) or done before for a chunk of time, which spares
 * re-reading W_ih where the weights do not fit the cache. Both are the same chain of additions: same bits.
 *
 * Backward (BPTT). Per step: the cell's derivative, then dh_{t-1} = dgates_t W_hh; the gradients of the inputs and weights are
 * products over a whole chunk of time, while its dgates are still cached, the chunks going backwards in time. */
#include "../core/denormals.h"
#include "matmul.h"

#include <string.h>

/* What the choice below rests on, measured on one core of a Cascade Lake server (benchmarks/README.md). */
static const double lstm_l2_bytes = 0.75e6;                 /* of weights that stay in a core's L2 from step to step */
static const double lstm_l2_rate = 85, lstm_l3_rate = 22;   /* bytes per nanosecond */
static const double lstm_cell_ns = 2.0;                     /* per hidden unit and row with 16 lanes: 2.0 to 2.2 */
static const double lstm_barrier_ns = 300;                  /* 130 to 170 for the barrier, the rest for unequal shares */

enum { lstm_chunk_bytes = 1 << 20, lstm_back_rows = 512 };  /* input product of a chunk; rows (t, b) of a backward chunk */

typedef enum { LSTM_ALONE, LSTM_ROWS, LSTM_UNITS } lstm_split;

static double lstm_larger(double a, double b) { return a > b ? a : b; }

static double lstm_stream_ns(double bytes) { return bytes < 24e3 ? 0 : bytes / (bytes < lstm_l2_bytes ? lstm_l2_rate : lstm_l3_rate); }

/* Nanoseconds of one step for each way of sharing; the least decides. (A backward step is one with I = 0.) */
static lstm_split lstm_plan(ptrdiff_t T, ptrdiff_t B, ptrdiff_t I, ptrdiff_t H, int *threads) {
    const FSQ_FN(kernels) *k = FSQ_FN(kernels_now)();
    double p = *threads, weights = 4.0 * (double)H * (double)(I + H), flops = 2 * weights * (double)B / k->flops_per_ns;
    double bytes = weights * sizeof(real), cell = (double)(B * H) * lstm_cell_ns * 16 / k->lanes;
    ptrdiff_t blocks = (H + k->lanes - 1) / k->lanes, n = *threads;
    double row_share = (double)((B + n - 1) / n) / (double)(B ? B : 1), unit_share = (double)((blocks + n - 1) / n) / (double)(blocks ? blocks : 1);
    double alone = lstm_larger(flops, lstm_stream_ns(bytes)) + cell;
    double rows = lstm_larger(flops * row_share, lstm_stream_ns(bytes)) + cell * row_share;
    double units = lstm_larger(flops * unit_share, lstm_stream_ns(bytes / p)) + cell * unit_share + lstm_barrier_ns;
    int forced = fsq_threads_for(0, *threads) > 1;          /* tests want the threads even where one is faster */
    *threads = fsq_threads_for((double)T * alone, *threads);
    if (*threads == 1 || (alone <= rows && alone <= units && !forced)) { *threads = 1; return LSTM_ALONE; }
    return rows <= units ? LSTM_ROWS : LSTM_UNITS;
}

/* Time steps per chunk of the input product; 0 where each step does its own. */
static ptrdiff_t lstm_input_chunk(ptrdiff_t T, ptrdiff_t B, ptrdiff_t I, ptrdiff_t H, lstm_split split, int threads) {
    double bytes = 4.0 * (double)H * (double)(I + H) * sizeof(real) / (split == LSTM_UNITS ? threads : 1);
    if (T < 4 || B == 0 || I == 0 || H == 0 || (B > 4 && bytes < lstm_l2_bytes)) return 0;
    const FSQ_FN(kernels) *k = FSQ_FN(kernels_now)();
    ptrdiff_t per_step = B * ((H + k->lanes - 1) / k->lanes) * k->lstm_cols * (ptrdiff_t)sizeof(real), chunk = lstm_chunk_bytes / per_step;
    if (chunk * B < 24) chunk = (24 + B - 1) / B;           /* enough rows to make the pass over W_ih pay */
    return chunk < T ? chunk : T;
}

typedef struct {
    real *y, *h_n, *c_n, *gates, *cells;
    const real *x, *h_0, *c_0, *packed;
    ptrdiff_t T, B, I, H, chunk;
    lstm_split split;
    real *sums;                                             /* scratch: the input product of a chunk */
} lstm_forward_args;

/* Steps [t0, t1) for batch rows [b0, b1) and unit blocks [j0, j1). */
static void lstm_forward_steps(const fsq_team *team, const lstm_forward_args *f, ptrdiff_t t0, ptrdiff_t t1, ptrdiff_t b0, ptrdiff_t b1,
                               ptrdiff_t j0, ptrdiff_t j1) {
    const FSQ_FN(kernels) *k = FSQ_FN(kernels_now)();
    ptrdiff_t B = f->B, H = f->H, width = (H + k->lanes - 1) / k->lanes * k->lstm_cols;
    int ahead = (double)((j1 - j0) * k->lstm_cols * (f->I + H)) * sizeof(real) > lstm_l2_bytes;
    for (ptrdiff_t t = t0; t < t1; t++) {
        ptrdiff_t at = (t * B + b0) * H, before = b0 * H;
        lstm_forward_step s = {
            .rows = b1 - b0, .I = f->I, .H = H, .x = f->x + (t * B + b0) * f->I,
            .sums = f->chunk ? f->sums + ((t - t0) * B + b0) * width : NULL, .sums_row = width,
            .h_before = t ? f->y + at - B * H : f->h_0 + before,
            .c_before = t == 0 ? f->c_0 + before : f->cells ? f->cells + at - B * H : f->c_n + before,
            .h = f->y + at, .c = f->cells ? f->cells + at : f->c_n + before,
            .gates = f->gates ? f->gates + 4 * at : NULL, .fetch_ahead = ahead};
        k->lstm_forward_blocks(&s, f->packed, j0, j1, t & 1);
        if (f->split == LSTM_UNITS) fsq_barrier(team);
    }
}

static void lstm_forward_body(const fsq_team *team, void *context) {
    const lstm_forward_args *f = context;
    const FSQ_FN(kernels) *k = FSQ_FN(kernels_now)();
    ptrdiff_t B = f->B, H = f->H, blocks = (H + k->lanes - 1) / k->lanes, b0 = 0, b1 = B, j0 = 0, j1 = blocks;
    if (f->split == LSTM_ROWS) fsq_share(team, B, 1, &b0, &b1);
    if (f->split == LSTM_UNITS) fsq_share(team, blocks, 1, &j0, &j1);
    fsq_fp_state fp = fsq_flush_denormals();
    for (ptrdiff_t t = 0; t < f->T && b0 < b1;) {
        ptrdiff_t end = f->chunk && t + f->chunk < f->T ? t + f->chunk : f->T;
        for (ptrdiff_t s = t; f->chunk && s < end; s = b1 - b0 == B ? end : s + 1)             /* all rows are one block of memory */
            k->lstm_input_blocks(f->sums + ((s - t) * B + b0) * blocks * k->lstm_cols, blocks * k->lstm_cols, f->x + (s * B + b0) * f->I, f->packed,
                                 b1 - b0 == B ? (end - s) * B : b1 - b0, f->I, H, j0, j1);
        lstm_forward_steps(team, f, t, end, b0, b1, j0, j1);
        t = end;
    }
    if (f->split == LSTM_UNITS) b0 = team->rank ? B : 0;                      /* the last barrier has been passed: one copies */
    if (f->T && b1 > b0) {
        ptrdiff_t last = (f->T - 1) * B * H + b0 * H, n = (b1 - b0) * H;
        memcpy(f->h_n + b0 * H, f->y + last, (size_t)n * sizeof(real));
        if (f->cells) memcpy(f->c_n + b0 * H, f->cells + last, (size_t)n * sizeof(real));
    }
    fsq_restore_denormals(fp);
}

/* Room for zeros in place of a state that is not given. */
static const real *lstm_state(const real *state, real **work, ptrdiff_t n) {
    if (state) return state;
    real *zeros = *work;
    memset(zeros, 0, (size_t)n * sizeof(real));
    *work += n;
    return zeros;
}

size_t FSQ_FN(lstm_packed_size)(ptrdiff_t I, ptrdiff_t H) {
    const FSQ_FN(kernels) *k = FSQ_FN(kernels_now)();
    return (size_t)((H + k->lanes - 1) / k->lanes * (1 + I + H) * k->lstm_cols);
}

typedef struct {
    real *packed;
    const real *w_ih, *w_hh, *b_ih, *b_hh;
    ptrdiff_t I, H;
} lstm_pack_args;

static void lstm_pack_body(const fsq_team *team, void *context) {
    const lstm_pack_args *a = context;
    const FSQ_FN(kernels) *k = FSQ_FN(kernels_now)();
    ptrdiff_t from, to;
    fsq_share(team, (a->H + k->lanes - 1) / k->lanes, 1, &from, &to);
    k->lstm_pack_blocks(a->packed, a->w_ih, a->w_hh, a->b_ih, a->b_hh, a->I, a->H, from, to);
}

void FSQ_FN(lstm_pack)(real *packed, const real *w_ih, const real *w_hh, const real *b_ih, const real *b_hh, ptrdiff_t I, ptrdiff_t H, int threads) {
    lstm_pack_args a = {packed, w_ih, w_hh, b_ih, b_hh, I, H};
    fsq_parallel(fsq_threads_for(4.0 * (double)H * (double)(I + H) * sizeof(real) / 8, threads), lstm_pack_body, &a);
}

size_t FSQ_FN(lstm_forward_work)(ptrdiff_t T, ptrdiff_t B, ptrdiff_t I, ptrdiff_t H, int threads) {
    const FSQ_FN(kernels) *k = FSQ_FN(kernels_now)();
    (void)threads;                                          /* alone, a thread has the most weights to spare its cache */
    ptrdiff_t sums = lstm_input_chunk(T, B, I, H, LSTM_ALONE, 1) * B * ((H + k->lanes - 1) / k->lanes) * k->lstm_cols;
    return (size_t)(sums + 2 * B * H) * sizeof(real) + 64;
}

void FSQ_FN(lstm_forward)(real *y, real *h_n, real *c_n, real *gates, real *cells, const real *x, const real *h_0, const real *c_0, const real *packed,
                          ptrdiff_t T, ptrdiff_t B, ptrdiff_t I, ptrdiff_t H, int threads, void *work) {
    lstm_forward_args f = {y, h_n, c_n, gates, cells, x, NULL, NULL, packed, T, B, I, H, 0, LSTM_ALONE, NULL};
    real *scratch = (real *)(((uintptr_t)work + 63) & ~(uintptr_t)63);
    f.split = lstm_plan(T, B, I, H, &threads);
    f.chunk = lstm_input_chunk(T, B, I, H, f.split, threads);
    f.h_0 = lstm_state(h_0, &scratch, B * H);
    f.c_0 = lstm_state(c_0, &scratch, B * H);
    f.sums = scratch;
    if (T == 0 || B == 0) {
        memmove(h_n, f.h_0, (size_t)(B * H) * sizeof(real));
        memmove(c_n, f.c_0, (size_t)(B * H) * sizeof(real));
        return;
    }
    fsq_parallel(threads, lstm_forward_body, &f);
}

size_t FSQ_FN(lstm_step_work)(ptrdiff_t B, ptrdiff_t I, ptrdiff_t H, int threads) {
    return (size_t)(B * H) * sizeof(real) + FSQ_FN(lstm_forward_work)(1, B, I, H, threads);
}

void FSQ_FN(lstm_step)(real *h, real *c, const real *x, const real *packed, ptrdiff_t B, ptrdiff_t I, ptrdiff_t H, int threads, void *work) {
    real *y = work;                                         /* h is read until the last unit is done */
    FSQ_FN(lstm_forward)(y, h, c, NULL, NULL, x, h, c, packed, 1, B, I, H, threads, y + B * H);
}

/* ---------------------------------------------------------------- backward */

typedef struct {
    real *dx, *dh_0, *dc_0, *dw_ih, *dw_hh, *db;
    const real *gates, *cells, *y, *dy, *x, *h_0, *c_0, *w_ih, *w_hh;
    ptrdiff_t T, B, I, H, chunk;
    lstm_split split;
    real *dgates, *panels, *work;                           /* scratch: a chunk's dgates; W_hh in panels; matmul's */
} lstm_backward_args;

/* Time steps per backward chunk: a property of the shape alone. */
static ptrdiff_t lstm_back_chunk(ptrdiff_t T, ptrdiff_t B) {
    ptrdiff_t chunk = lstm_back_rows / (B ? B : 1);
    return chunk < 1 ? 1 : chunk < T ? chunk : T;
}

/* Columns [u0, u1) of dh_{t-1} = dgates W_hh (rows x 4H times 4H x H), blocks of k while a panel's part is in L1 or L2. */
static void lstm_back_product(const FSQ_FN(kernels) *k, const lstm_backward_args *a, const real *panels, const real *dgates, ptrdiff_t b0, ptrdiff_t b1,
                              ptrdiff_t u0, ptrdiff_t u1, int backwards) {
    ptrdiff_t K = 4 * a->H, cols = k->gemm_cols, rows = b1 - b0, wide = rows <= 3 ? 4 : 1;      /* few rows: several panels side by side */
    ptrdiff_t kc = rows <= k->gemm_rows ? K : matmul_kc;
    for (ptrdiff_t n = u0; n < u1; n += wide * cols) {
        ptrdiff_t j = backwards ? u0 + (u1 - 1 - n) / (wide * cols) * (wide * cols) : n, width = u1 - j < wide * cols ? u1 - j : wide * cols;
        for (ptrdiff_t k0 = 0; k0 < K; k0 += kc)
            k->gemm_block(a->dh_0 + b0 * a->H + j, a->H, dgates + b0 * K + k0, K, 1, 0, panels + (j - u0) * K + k0 * cols, cols, K * cols, rows, width,
                          k0 + kc < K ? kc : K - k0, k0 > 0, NULL, FSQ_IDENTITY);
    }
}

/* Steps t1 - 1 down to t0: dgates of each, and dh, dc (in dh_0, dc_0) of the step before. */
static void lstm_backward_steps(const fsq_team *team, const lstm_backward_args *a, const real *panels, ptrdiff_t t0, ptrdiff_t t1, ptrdiff_t b0, ptrdiff_t b1,
                                ptrdiff_t u0, ptrdiff_t u1) {
    const FSQ_FN(kernels) *k = FSQ_FN(kernels_now)();
    ptrdiff_t B = a->B, H = a->H, before = b0 * H;
    for (ptrdiff_t t = t1 - 1; t >= t0; t--) {
        ptrdiff_t at = (t * B + b0) * H;
        real *dgates = a->dgates + (t - t0) * B * 4 * H;
        lstm_backward_step s = {
            .rows = b1 - b0, .H = H, .gates = a->gates + 4 * at, .c = a->cells + at,
            .c_before = t ? a->cells + at - B * H : a->c_0 ? a->c_0 + before : NULL,
            .dy = a->dy ? a->dy + at : NULL, .dh = a->dh_0 + before, .dc = a->dc_0 + before, .dgates = dgates + 4 * before};
        k->lstm_backward_units(&s, u0, u1);
        if (a->split == LSTM_UNITS) fsq_barrier(team);
        lstm_back_product(k, a, panels, dgates, b0, b1, u0, u1, t & 1);
    }
}

/* db += the column sums of a chunk's dgates, last row first; this worker's columns. */
static void lstm_back_bias(const fsq_team *team, const lstm_backward_args *a, ptrdiff_t rows) {
    ptrdiff_t from, to, K = 4 * a->H;
    fsq_share(team, K, 16, &from, &to);
    for (ptrdiff_t r = rows - 1; r >= 0; r--)
        for (ptrdiff_t j = from; j < to; j++) a->db[j] += a->dgates[r * K + j];
}

/* The products over a chunk of time: dx = dgates W_ih; dW_ih += dgates^T x; dW_hh += dgates^T h_{t-1}. Rows (t, b) descend: strides
 * below zero, from the last row. The step before the first reads h_0. */
static void lstm_back_chunk_products(const fsq_team *team, const lstm_backward_args *a, ptrdiff_t t0, ptrdiff_t t1) {
    ptrdiff_t B = a->B, I = a->I, H = a->H, K = 4 * H, rows = (t1 - t0) * B, own = t0 ? rows : rows - B;
    if (a->dx) {
        matmul_args dx = {.c = a->dx + t0 * B * I, .a = a->dgates, .b = a->w_ih, .M = rows, .N = I, .K = K, .c_row = I, .a_row = K, .a_col = 1, .b_row = I, .b_col = 1};
        matmul_team(team, &dx, a->work);
        fsq_barrier(team);
    }
    if (!a->dw_ih) return;
    const real *last = a->dgates + (rows - 1) * K;
    matmul_args dw = {.c = a->dw_ih, .a = last, .b = a->x + (t1 * B - 1) * I, .M = K, .N = I, .K = rows, .c_row = I, .a_row = 1, .a_col = -K, .b_row = -I, .b_col = 1, .add = 1};
    matmul_team(team, &dw, a->work);
    fsq_barrier(team);
    matmul_args du = {.c = a->dw_hh, .a = last, .b = a->y + ((t1 - 1) * B - 1) * H, .M = K, .N = H, .K = own, .c_row = H, .a_row = 1, .a_col = -K, .b_row = -H, .b_col = 1, .add = 1};
    matmul_team(team, &du, a->work);
    fsq_barrier(team);
    if (t0 == 0 && a->h_0) {
        matmul_args first = {.c = a->dw_hh, .a = a->dgates + (B - 1) * K, .b = a->h_0 + (B - 1) * H, .M = K, .N = H, .K = B, .c_row = H, .a_row = 1, .a_col = -K, .b_row = -H, .b_col = 1, .add = 1};
        matmul_team(team, &first, a->work);
        fsq_barrier(team);
    }
    lstm_back_bias(team, a, rows);
}

static void lstm_backward_body(const fsq_team *team, void *context) {
    const lstm_backward_args *a = context;
    const FSQ_FN(kernels) *k = FSQ_FN(kernels_now)();
    ptrdiff_t b0 = 0, b1 = a->B, u0 = 0, u1 = a->H;
    if (a->split == LSTM_ROWS) fsq_share(team, a->B, 1, &b0, &b1);
    if (a->split == LSTM_UNITS) fsq_share(team, a->H, k->lanes, &u0, &u1);
    fsq_fp_state fp = fsq_flush_denormals();
    fsq_team all = a->split == LSTM_UNITS ? (fsq_team){0, 1, NULL} : *team;   /* of W_hh each packs what it reads, or all pack all */
    real *panels = a->panels + (a->split == LSTM_UNITS ? (u0 + team->rank * k->gemm_cols) * 4 * a->H : 0);
    matmul_pack_args pack = {panels, a->w_hh + u0, u1 - u0, 4 * a->H, a->H, 1};
    matmul_pack_team(&all, &pack);
    fsq_barrier(team);
    for (ptrdiff_t t1 = a->T; t1 > 0; t1 -= a->chunk) {
        ptrdiff_t t0 = t1 > a->chunk ? t1 - a->chunk : 0;
        if (b0 < b1) lstm_backward_steps(team, a, panels, t0, t1, b0, b1, u0, u1);
        fsq_barrier(team);
        lstm_back_chunk_products(team, a, t0, t1);
        fsq_barrier(team);                                  /* dgates may be written again */
    }
    fsq_restore_denormals(fp);
}

static void lstm_copy_or_zero(real *to, const real *from, ptrdiff_t n) {
    if (from) memcpy(to, from, (size_t)n * sizeof(real));
    else memset(to, 0, (size_t)n * sizeof(real));
}

/* W_hh in panels, with room for each worker's last, narrower one. */
static ptrdiff_t lstm_back_panels(const FSQ_FN(kernels) *k, ptrdiff_t H, int threads) { return (H + (threads + 1) * k->gemm_cols) * 4 * H; }

size_t FSQ_FN(lstm_backward_work)(ptrdiff_t T, ptrdiff_t B, ptrdiff_t I, ptrdiff_t H, int threads) {
    const FSQ_FN(kernels) *k = FSQ_FN(kernels_now)();
    ptrdiff_t rows = lstm_back_chunk(T, B) * B;
    size_t work = matmul_work(k, rows, I, 4 * H, 0, threads), other = matmul_work(k, 4 * H, I > H ? I : H, rows, 0, threads);
    return ((size_t)(rows * 4 * H + lstm_back_panels(k, H, threads)) + 64) * sizeof(real) + (work > other ? work : other);
}

void FSQ_FN(lstm_backward)(real *dx, real *dh_0, real *dc_0, real *dw_ih, real *dw_hh, real *db, const real *gates, const real *cells, const real *y,
                           const real *dy, const real *dh_n, const real *dc_n, const real *x, const real *h_0, const real *c_0, const real *w_ih,
                           const real *w_hh, ptrdiff_t T, ptrdiff_t B, ptrdiff_t I, ptrdiff_t H, int threads, void *work) {
    lstm_backward_args a = {dx, dh_0, dc_0, dw_ih, dw_hh, db, gates, cells, y, dy, x, h_0, c_0, w_ih, w_hh, T, B, I, H, lstm_back_chunk(T, B), LSTM_ALONE, NULL, NULL, NULL};
    lstm_copy_or_zero(dh_0, dh_n, B * H);
    lstm_copy_or_zero(dc_0, dc_n, B * H);
    if (dw_ih) {
        memset(dw_ih, 0, (size_t)(4 * H * I) * sizeof(real));
        memset(dw_hh, 0, (size_t)(4 * H * H) * sizeof(real));
        memset(db, 0, (size_t)(4 * H) * sizeof(real));
    }
    if (T == 0 || B == 0) return;
    a.panels = (real *)(((uintptr_t)work + 63) & ~(uintptr_t)63);
    a.dgates = a.panels + lstm_back_panels(FSQ_FN(kernels_now)(), H, threads);
    a.work = a.dgates + a.chunk * B * 4 * H;
    a.split = lstm_plan(T, B, 0, H, &threads);
    fsq_parallel(threads, lstm_backward_body, &a);
}
