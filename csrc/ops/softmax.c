/* softmax.c - threads over the rows of kernels/softmax.c: softmax and its logarithm. */
#include "../core/threads.h"
#include "../kernels/kernels.h"

typedef struct {
    void (*forward)(real *y, const real *x, ptrdiff_t rows, ptrdiff_t N);
    void (*backward)(real *dx, const real *y, const real *dy, ptrdiff_t rows, ptrdiff_t N);
    ptrdiff_t grain;                                        /* rows */
    real *y;
    const real *x, *dy;
    ptrdiff_t M, N;
} softmax_call;

static void softmax_forward_part(const fsq_team *team, void *context) {
    const softmax_call *c = context;
    ptrdiff_t from, to;
    fsq_share(team, c->M, c->grain, &from, &to);
    if (from < to) c->forward(c->y + from * c->N, c->x + from * c->N, to - from, c->N);
}

static void softmax_forward_rows(softmax_call c, int threads) {
    double nanoseconds = (double)c.M * (15 + (double)c.N / FSQ_FN(kernels_now)()->lanes * 6);
    if (c.N) fsq_parallel(fsq_threads_for(nanoseconds, threads), softmax_forward_part, &c);
}

void FSQ_FN(softmax_forward)(real *y, const real *x, ptrdiff_t M, ptrdiff_t N, int threads) {
    softmax_forward_rows((softmax_call){.forward = FSQ_FN(kernels_now)()->softmax_forward, .grain = 1, .y = y, .x = x, .M = M, .N = N}, threads);
}

/* Whole groups of rows whose logarithms are taken together. */
void FSQ_FN(log_softmax_forward)(real *y, const real *x, ptrdiff_t M, ptrdiff_t N, int threads) {
    const FSQ_FN(kernels) *k = FSQ_FN(kernels_now)();
    softmax_forward_rows((softmax_call){.forward = k->log_softmax_forward, .grain = k->lanes, .y = y, .x = x, .M = M, .N = N}, threads);
}

/* c->y is dx and c->x is y here */
static void softmax_backward_part(const fsq_team *team, void *context) {
    const softmax_call *c = context;
    ptrdiff_t from, to;
    fsq_share(team, c->M, 1, &from, &to);
    from *= c->N, to *= c->N;
    if (from < to) c->backward(c->y + from, c->x + from, c->dy + from, (to - from) / c->N, c->N);
}

/* `each`: nanoseconds for one vector */
static void softmax_backward_rows(softmax_call c, double each, int threads) {
    double nanoseconds = (double)c.M * (10 + (double)c.N / FSQ_FN(kernels_now)()->lanes * each);
    if (c.N) fsq_parallel(fsq_threads_for(nanoseconds, threads), softmax_backward_part, &c);
}

void FSQ_FN(softmax_backward)(real *dx, const real *y, const real *dy, ptrdiff_t M, ptrdiff_t N, int threads) {
    softmax_call c = {.backward = FSQ_FN(kernels_now)()->softmax_backward, .y = dx, .x = y, .dy = dy, .M = M, .N = N};
    softmax_backward_rows(c, 2, threads);
}

void FSQ_FN(log_softmax_backward)(real *dx, const real *y, const real *dy, ptrdiff_t M, ptrdiff_t N, int threads) {
    softmax_call c = {.backward = FSQ_FN(kernels_now)()->log_softmax_backward, .y = dx, .x = y, .dy = dy, .M = M, .N = N};
    softmax_backward_rows(c, 5, threads);
}
