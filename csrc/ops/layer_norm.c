/* layer_norm.c - threads over the rows of kernels/layer_norm.c.
 *
 * Sums over rows are made in chunks of rows, whose number follows from M alone, and the chunks are added up in their order: the
 * same bits for any threads. */
#include "../core/threads.h"
#include "../kernels/kernels.h"

enum {
    layer_norm_chunks = 32,                                 /* at most: scratch is 64 rows of sums */
    layer_norm_chunk_rows = 8,                              /* at least: below, adding up the chunks would cost more than the rows */
    layer_norm_grain = 64 / sizeof(real)                    /* whole cache lines of a gradient for each worker */
};

typedef struct {
    layer_norm_rows rows;
    int centred;
} layer_norm_forward_call;

static void layer_norm_forward_part(const fsq_team *team, void *context) {
    const layer_norm_forward_call *c = context;
    layer_norm_rows part = c->rows;
    ptrdiff_t from, to, N = part.N;
    fsq_share(team, part.rows, 1, &from, &to);
    part.rows = to - from;
    part.y += from * N, part.x += from * N, part.rstd += from;
    if (part.s) part.s += from * N, part.residual += from * N;
    if (part.mean) part.mean += from;
    FSQ_FN(kernels_now)()->layer_norm_forward[c->centred](&part);
}

void FSQ_FN(layer_norm_forward)(real *y, real *s, real *mean, real *rstd, const real *x, const real *residual, const real *weight, const real *bias,
                                ptrdiff_t M, ptrdiff_t N, double eps, int centred, int threads) {
    layer_norm_forward_call c = {{y, s, mean, rstd, x, residual, weight, bias, M, N, (real)eps}, centred};
    double nanoseconds = (double)M * (30 + (double)N / FSQ_FN(kernels_now)()->lanes * 3);
    if (N == 0) return;
    fsq_parallel(fsq_threads_for(nanoseconds, threads), layer_norm_forward_part, &c);
}

typedef struct {
    layer_norm_back_rows rows;
    int centred;
    ptrdiff_t chunk, chunks;
    real *sums;                                             /* (chunks, 2, N): dweight, dbias */
} layer_norm_backward_call;

static ptrdiff_t layer_norm_chunk(ptrdiff_t M) {
    ptrdiff_t each = (M + layer_norm_chunks - 1) / layer_norm_chunks;
    return each > layer_norm_chunk_rows ? each : layer_norm_chunk_rows;
}

static void layer_norm_backward_chunk(const layer_norm_backward_call *c, ptrdiff_t i) {
    layer_norm_back_rows part = c->rows;
    ptrdiff_t first = i * c->chunk, N = part.N;
    part.rows = part.rows - first < c->chunk ? part.rows - first : c->chunk;
    part.dy += first * N, part.s += first * N, part.rstd += first;
    if (part.dx) part.dx += first * N;
    if (part.ds) part.ds += first * N;
    if (part.mean) part.mean += first;
    if (part.dweight) part.dweight = c->sums + 2 * i * N;
    if (part.dbias) part.dbias = c->sums + (2 * i + 1) * N;
    FSQ_FN(kernels_now)()->layer_norm_backward[c->centred](&part);
}

static void layer_norm_backward_part(const fsq_team *team, void *context) {
    const layer_norm_backward_call *c = context;
    const FSQ_FN(kernels) *k = FSQ_FN(kernels_now)();
    ptrdiff_t from, to, N = c->rows.N;
    fsq_share(team, c->chunks, 1, &from, &to);
    for (; from < to; from++) layer_norm_backward_chunk(c, from);
    if (!c->rows.dweight && !c->rows.dbias) return;
    fsq_barrier(team);
    fsq_share(team, N, layer_norm_grain, &from, &to);
    if (from >= to) return;
    if (c->rows.dweight) k->bias_backward(c->rows.dweight + from, c->sums + from, c->chunks, 2 * N, to - from, 0);
    if (c->rows.dbias) k->bias_backward(c->rows.dbias + from, c->sums + N + from, c->chunks, 2 * N, to - from, 0);
}

size_t FSQ_FN(layer_norm_backward_work)(ptrdiff_t M, ptrdiff_t N) {
    ptrdiff_t chunk = layer_norm_chunk(M);
    return (size_t)((M + chunk - 1) / chunk * 2 * N) * sizeof(real);
}

void FSQ_FN(layer_norm_backward)(real *dx, real *dweight, real *dbias, const real *dy, const real *ds, const real *s, const real *mean,
                                 const real *rstd, const real *weight, ptrdiff_t M, ptrdiff_t N, int centred, int threads, void *work) {
    ptrdiff_t chunk = layer_norm_chunk(M);
    layer_norm_backward_call c = {{dx, dweight, dbias, dy, ds, s, mean, rstd, weight, M, N}, centred, chunk, (M + chunk - 1) / chunk, work};
    double nanoseconds = (double)M * (30 + (double)N / FSQ_FN(kernels_now)()->lanes * 5);
    if (N == 0) return;
    fsq_parallel(fsq_threads_for(nanoseconds, threads), layer_norm_backward_part, &c);
}
