/* softmax.c - threads over the rows of kernels/softmax.c. */
#include "../core/threads.h"
#include "../kernels/kernels.h"

typedef struct {
    real *y;
    const real *x, *dy;
    ptrdiff_t M, N;
} softmax_call;

static void softmax_forward_part(const fsq_team *team, void *context) {
    const softmax_call *c = context;
    ptrdiff_t from, to;
    fsq_share(team, c->M, 1, &from, &to);
    if (from < to) FSQ_FN(kernels_now)()->softmax_forward(c->y + from * c->N, c->x + from * c->N, to - from, c->N);
}

void FSQ_FN(softmax_forward)(real *y, const real *x, ptrdiff_t M, ptrdiff_t N, int threads) {
    softmax_call c = {y, x, NULL, M, N};
    if (N == 0) return;
    double nanoseconds = (double)M * (15 + (double)N / FSQ_FN(kernels_now)()->lanes * 6);
    fsq_parallel(fsq_threads_for(nanoseconds, threads), softmax_forward_part, &c);
}

/* c->y is dx and c->x is y here */
static void softmax_backward_part(const fsq_team *team, void *context) {
    const softmax_call *c = context;
    ptrdiff_t from, to;
    fsq_share(team, c->M, 1, &from, &to);
    from *= c->N, to *= c->N;
    if (from < to) FSQ_FN(kernels_now)()->softmax_backward(c->y + from, c->x + from, c->dy + from, (to - from) / c->N, c->N);
}

void FSQ_FN(softmax_backward)(real *dx, const real *y, const real *dy, ptrdiff_t M, ptrdiff_t N, int threads) {
    softmax_call c = {dx, y, dy, M, N};
    if (N == 0) return;
    double nanoseconds = (double)M * (10 + (double)N / FSQ_FN(kernels_now)()->lanes * 2);
    fsq_parallel(fsq_threads_for(nanoseconds, threads), softmax_backward_part, &c);
}
