/* pointwise.c - threads over the elements of kernels/pointwise.c. */
#include "../core/threads.h"
#include "../kernels/kernels.h"

enum { pointwise_grain = 1024 };                            /* elements; whole cache lines for each worker */

/* Nanoseconds for one vector in the cache, roughly: copying, or a polynomial and a division. */
static double pointwise_cost(fsq_function function, ptrdiff_t n, int lanes) {
    return (double)n / lanes * (function == FSQ_IDENTITY || function == FSQ_RELU || function == FSQ_LEAKY_RELU ? 1 : 5);
}

typedef struct {
    void (*kernel)(real *y, const real *x, ptrdiff_t n, real parameter);
    real *y;
    const real *x;
    ptrdiff_t n;
    real parameter;
} pointwise_forward_call;

static void pointwise_forward_part(const fsq_team *team, void *context) {
    const pointwise_forward_call *c = context;
    ptrdiff_t from, to;
    fsq_share(team, c->n, pointwise_grain, &from, &to);
    if (from < to) c->kernel(c->y + from, c->x + from, to - from, c->parameter);
}

void FSQ_FN(pointwise_forward)(real *y, const real *x, ptrdiff_t n, fsq_function function, double parameter, int threads) {
    const FSQ_FN(kernels) *k = FSQ_FN(kernels_now)();
    pointwise_forward_call c = {k->pointwise_forward[function], y, x, n, (real)parameter};
    fsq_parallel(fsq_threads_for(pointwise_cost(function, n, k->lanes), threads), pointwise_forward_part, &c);
}

typedef struct {
    void (*kernel)(real *dx, const real *saved, const real *dy, ptrdiff_t n, real parameter);
    real *dx;
    const real *saved, *dy;
    ptrdiff_t n;
    real parameter;
} pointwise_backward_call;

static void pointwise_backward_part(const fsq_team *team, void *context) {
    const pointwise_backward_call *c = context;
    ptrdiff_t from, to;
    fsq_share(team, c->n, pointwise_grain, &from, &to);
    if (from < to) c->kernel(c->dx + from, c->saved + from, c->dy + from, to - from, c->parameter);
}

void FSQ_FN(pointwise_backward)(real *dx, const real *saved, const real *dy, ptrdiff_t n, fsq_function function, double parameter, int threads) {
    const FSQ_FN(kernels) *k = FSQ_FN(kernels_now)();
    pointwise_backward_call c = {k->pointwise_backward[function], dx, saved, dy, n, (real)parameter};
    fsq_parallel(fsq_threads_for(1.5 * (double)n / k->lanes, threads), pointwise_backward_part, &c);
}
