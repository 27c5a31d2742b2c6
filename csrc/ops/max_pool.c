/* max_pool.c - threads over the planes of kernels/max_pool.c. */
#include "../core/threads.h"
#include "../kernels/kernels.h"

typedef struct {
    const fsq_max_pool_call *call;
    real *y, *dx;
    int64_t *places;                                        /* forward writes them */
    const real *x, *dy;
    ptrdiff_t planes;
} max_pool_arrays;

static void max_pool_forward_part(const fsq_team *team, void *context) {
    const max_pool_arrays *a = context;
    ptrdiff_t from, to, windows = a->call->out_h * a->call->out_w;
    fsq_share(team, a->planes, 1, &from, &to);
    FSQ_FN(kernels_now)()->max_pool_forward(a->y + from * windows, a->places + from * windows, a->x + from * a->call->H * a->call->W, a->call, to - from);
}

static void max_pool_backward_part(const fsq_team *team, void *context) {
    const max_pool_arrays *a = context;
    ptrdiff_t from, to, windows = a->call->out_h * a->call->out_w;
    fsq_share(team, a->planes, 1, &from, &to);
    FSQ_FN(kernels_now)()->max_pool_backward(a->dx + from * a->call->H * a->call->W, a->dy + from * windows, a->places + from * windows, a->call, to - from);
}

void FSQ_FN(max_pool_forward)(real *y, int64_t *places, const real *x, ptrdiff_t planes, const fsq_max_pool_call *call, int threads) {
    max_pool_arrays a = {.call = call, .y = y, .places = places, .x = x, .planes = planes};
    double looks = (double)planes * (double)(call->out_h * call->out_w) * (double)(call->kernel_h * call->kernel_w);
    fsq_parallel(fsq_threads_for(looks, threads), max_pool_forward_part, &a);     /* about a nanosecond for each */
}

void FSQ_FN(max_pool_backward)(real *dx, const real *dy, const int64_t *places, ptrdiff_t planes, const fsq_max_pool_call *call, int threads) {
    max_pool_arrays a = {.call = call, .dx = dx, .places = (int64_t *)places, .dy = dy, .planes = planes};
    double elements = (double)planes * (double)(call->out_h * call->out_w + call->H * call->W / 4);
    fsq_parallel(fsq_threads_for(elements, threads), max_pool_backward_part, &a);
}
