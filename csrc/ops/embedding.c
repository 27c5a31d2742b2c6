/* embedding.c - threads over kernels/embedding.c: forward over the ids, backward over the table.
 *
 * Backward gives each worker columns of dweight, or rows of it where columns would be narrower than a cache line: no two touch the
 * same element, and each sums in the order of n. By rows a worker passes over the ids of others, which costs a comparison. */
#include "../core/threads.h"
#include "../kernels/kernels.h"

enum { embedding_grain = 64 / sizeof(real) };               /* columns: a cache line */

typedef struct {
    real *y;
    const int64_t *ids;
    const real *weight;
    ptrdiff_t n, D;
} embedding_forward_call;

static void embedding_forward_part(const fsq_team *team, void *context) {
    const embedding_forward_call *c = context;
    ptrdiff_t from, to;
    fsq_share(team, c->n, 1, &from, &to);
    if (from < to) FSQ_FN(kernels_now)()->embedding_forward(c->y + from * c->D, c->ids + from, c->weight, to - from, c->D);
}

void FSQ_FN(embedding_forward)(real *y, const int64_t *ids, const real *weight, ptrdiff_t n, ptrdiff_t V, ptrdiff_t D, int threads) {
    embedding_forward_call c = {y, ids, weight, n, D};
    (void)V;
    double nanoseconds = (double)n * (2 + (double)D * sizeof(real) / 20);       /* 20 bytes in a nanosecond */
    fsq_parallel(fsq_threads_for(nanoseconds, threads), embedding_forward_part, &c);
}

typedef struct {
    real *dweight;
    const real *dy;
    const int64_t *ids;
    ptrdiff_t n, V, D;
    int64_t padding_idx;
} embedding_backward_call;

static void embedding_backward_part(const fsq_team *team, void *context) {
    const embedding_backward_call *c = context;
    ptrdiff_t row = 0, row_end = c->V, column = 0, column_end = c->D;
    if (c->D >= team->size * embedding_grain) fsq_share(team, c->D, embedding_grain, &column, &column_end);
    else fsq_share(team, c->V, 1, &row, &row_end);
    if (row < row_end && column < column_end)
        FSQ_FN(kernels_now)()->embedding_backward(c->dweight, c->dy, c->ids, c->n, c->D, c->padding_idx, row, row_end, column, column_end);
}

void FSQ_FN(embedding_backward)(real *dweight, const real *dy, const int64_t *ids, ptrdiff_t n, ptrdiff_t V, ptrdiff_t D, int64_t padding_idx,
                                int threads) {
    embedding_backward_call c = {dweight, dy, ids, n, V, D, padding_idx};
    double nanoseconds = (double)n * (2 + (double)D * sizeof(real) / 20) + (double)V * (double)D * sizeof(real) / 20;
    fsq_parallel(fsq_threads_for(nanoseconds, threads), embedding_backward_part, &c);
}
