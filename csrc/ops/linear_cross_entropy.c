/* linear_cross_entropy.c - a linear layer and the cross entropy of its results, which only ever exist for a chunk of rows.
 *
 *   logits = x W^T + b, losses as in kernels/cross_entropy.c; dx = dlogits W, dW = dlogits^T x, db = sum of dlogits
 *
 * The team makes the product of a chunk together, then each worker takes the losses of its rows. Backward makes the logits again: two
 * thirds of its time are the other two products. A chunk's rows follow from V alone, dW and db go on from chunk to chunk, and in one from
 * row to row: one chain of additions for each element. */
#include "matmul.h"

#include <string.h>

/* The bytes of a chunk of logits, about: the more, the less often W is packed and dW read and written again. */
enum { linear_cross_entropy_bytes = 4 << 20, linear_cross_entropy_rows = 96 /* at least: a block of rows of the product */ };

typedef struct {
    real *losses, *lse;                                     /* forward */
    real *dx, *dweight, *dbias;                             /* backward */
    const real *saved_lse, *dlosses;
    ptrdiff_t dlosses_step;
    const real *x, *weight, *bias;
    const int64_t *targets;
    ptrdiff_t N, H, V, chunk;
    int64_t ignore_index;
    double smoothing;
    real *logits, *work;
} linear_cross_entropy_call;

static ptrdiff_t linear_cross_entropy_chunk(ptrdiff_t N, ptrdiff_t V) {
    ptrdiff_t rows = linear_cross_entropy_bytes / (ptrdiff_t)sizeof(real) / (V > 0 ? V : 1);
    rows = rows > linear_cross_entropy_rows ? rows : linear_cross_entropy_rows;
    return rows < N ? rows : N;
}

/* Rows [first, first + rows) of the logits. */
static void linear_cross_entropy_logits(const fsq_team *team, const linear_cross_entropy_call *c, ptrdiff_t first, ptrdiff_t rows) {
    matmul_args product = {.c = c->logits, .a = c->x + first * c->H, .b = c->weight, .bias = c->bias, .M = rows, .N = c->V, .K = c->H,
                           .c_row = c->V, .a_row = c->H, .a_col = 1, .b_row = 1, .b_col = c->H};
    matmul_team(team, &product, c->work);
    fsq_barrier(team);
}

static void linear_cross_entropy_forward_part(const fsq_team *team, void *context) {
    const linear_cross_entropy_call *c = context;
    const FSQ_FN(kernels) *k = FSQ_FN(kernels_now)();
    for (ptrdiff_t first = 0, rows, from, to; first < c->N; first += rows) {
        rows = matmul_min(c->N - first, c->chunk);
        linear_cross_entropy_logits(team, c, first, rows);
        fsq_share(team, rows, k->lanes, &from, &to);
        if (from < to)
            k->cross_entropy_forward(c->losses + first + from, c->lse + first + from, c->logits + from * c->V, c->targets + first + from, to - from,
                                     c->V, c->ignore_index, c->smoothing);
        fsq_barrier(team);                                                    /* the logits have been read */
    }
}

/* Rows [first, first + rows) of dlogits are there: dx of them, and what they add to dweight and dbias. */
static void linear_cross_entropy_gradients(const fsq_team *team, const linear_cross_entropy_call *c, ptrdiff_t first, ptrdiff_t rows) {
    const ptrdiff_t H = c->H, V = c->V;
    ptrdiff_t from, to;
    if (c->dbias) {
        fsq_share(team, V, 64 / sizeof(real), &from, &to);
        if (from < to) FSQ_FN(kernels_now)()->bias_backward(c->dbias + from, c->logits + from, rows, V, to - from, first > 0);
    }
    if (c->dx) {
        matmul_args product = {.c = c->dx + first * H, .a = c->logits, .b = c->weight, .M = rows, .N = H, .K = V,
                               .c_row = H, .a_row = V, .a_col = 1, .b_row = H, .b_col = 1};
        matmul_team(team, &product, c->work);
        fsq_barrier(team);
    }
    if (c->dweight) {
        matmul_args product = {.c = c->dweight, .a = c->logits, .b = c->x + first * H, .M = V, .N = H, .K = rows,
                               .c_row = H, .a_row = 1, .a_col = V, .b_row = H, .b_col = 1, .add = first > 0};
        matmul_team(team, &product, c->work);
    }
    fsq_barrier(team);
}

static void linear_cross_entropy_backward_part(const fsq_team *team, void *context) {
    const linear_cross_entropy_call *c = context;
    const FSQ_FN(kernels) *k = FSQ_FN(kernels_now)();
    for (ptrdiff_t first = 0, rows, from, to; first < c->N; first += rows) {
        rows = matmul_min(c->N - first, c->chunk);
        linear_cross_entropy_logits(team, c, first, rows);
        fsq_share(team, rows, 1, &from, &to);
        real *mine = c->logits + from * c->V;                                 /* dlogits take the place of the logits */
        if (from < to)
            k->cross_entropy_backward(mine, c->saved_lse + first + from, mine, c->targets + first + from, c->dlosses + (first + from) * c->dlosses_step,
                                      c->dlosses_step, to - from, c->V, c->ignore_index, c->smoothing);
        fsq_barrier(team);
        linear_cross_entropy_gradients(team, c, first, rows);
    }
}

/* Scratch: a chunk of logits, a line for alignment, and the products'. */
static size_t linear_cross_entropy_logits_size(ptrdiff_t chunk, ptrdiff_t V) { return (size_t)matmul_up(chunk * V, 64) * sizeof(real) + 64; }

size_t FSQ_FN(linear_cross_entropy_forward_work)(ptrdiff_t N, ptrdiff_t H, ptrdiff_t V, int threads) {
    ptrdiff_t chunk = linear_cross_entropy_chunk(N, V);
    return linear_cross_entropy_logits_size(chunk, V) + matmul_work(FSQ_FN(kernels_now)(), chunk, V, H, 0, threads);
}

size_t FSQ_FN(linear_cross_entropy_backward_work)(ptrdiff_t N, ptrdiff_t H, ptrdiff_t V, int threads) {
    const FSQ_FN(kernels) *k = FSQ_FN(kernels_now)();
    ptrdiff_t chunk = linear_cross_entropy_chunk(N, V);
    size_t logits = matmul_work(k, chunk, V, H, 0, threads), dx = matmul_work(k, chunk, H, V, 0, threads), dweight = matmul_work(k, V, H, chunk, 0, threads);
    size_t greatest = logits > dx ? logits : dx;
    if (dweight > greatest) greatest = dweight;
    return linear_cross_entropy_logits_size(chunk, V) + greatest;
}

static void linear_cross_entropy_run(linear_cross_entropy_call *c, fsq_body body, int products, int threads, void *work) {
    const FSQ_FN(kernels) *k = FSQ_FN(kernels_now)();
    c->chunk = linear_cross_entropy_chunk(c->N, c->V);
    c->logits = (real *)(((uintptr_t)work + 63) & ~(uintptr_t)63);
    c->work = (real *)((char *)work + linear_cross_entropy_logits_size(c->chunk, c->V));
    double each = 2.0 * (double)products * (double)c->H / k->flops_per_ns + 5.0 / k->lanes;   /* nanoseconds for a logit */
    fsq_parallel(fsq_threads_for(each * (double)c->N * (double)c->V, threads), body, c);
}

void FSQ_FN(linear_cross_entropy_forward)(real *losses, real *lse, const real *x, const real *weight, const real *bias, const int64_t *targets,
                                          ptrdiff_t N, ptrdiff_t H, ptrdiff_t V, int64_t ignore_index, double smoothing, int threads, void *work) {
    linear_cross_entropy_call c = {.losses = losses, .lse = lse, .x = x, .weight = weight, .bias = bias, .targets = targets, .N = N, .H = H, .V = V,
                                   .ignore_index = ignore_index, .smoothing = smoothing};
    linear_cross_entropy_run(&c, linear_cross_entropy_forward_part, 1, threads, work);
}

void FSQ_FN(linear_cross_entropy_backward)(real *dx, real *dweight, real *dbias, const real *lse, const real *x, const real *weight, const real *bias,
                                           const int64_t *targets, const real *dlosses, ptrdiff_t dlosses_step, ptrdiff_t N, ptrdiff_t H, ptrdiff_t V,
                                           int64_t ignore_index, double smoothing, int threads, void *work) {
    linear_cross_entropy_call c = {.dx = dx, .dweight = dweight, .dbias = dbias, .saved_lse = lse, .dlosses = dlosses, .dlosses_step = dlosses_step,
                                   .x = x, .weight = weight, .bias = bias, .targets = targets, .N = N, .H = H, .V = V,
                                   .ignore_index = ignore_index, .smoothing = smoothing};
    linear_cross_entropy_run(&c, linear_cross_entropy_backward_part, 3, threads, work);
    if (N > 0) return;
    if (dweight) memset(dweight, 0, (size_t)(V * H) * sizeof(real));
    if (dbias) memset(dbias, 0, (size_t)V * sizeof(real));
}
