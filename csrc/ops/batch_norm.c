/* batch_norm.c - threads over the channels of kernels/batch_norm.c: a channel's sums belong to one worker. */
#include "../core/threads.h"
#include "../kernels/kernels.h"

enum { batch_norm_grain = 64 / sizeof(real) };              /* channels that are a lane each: whole cache lines */

typedef struct {
    void (*kernel)(const batch_norm_call *call, ptrdiff_t from, ptrdiff_t to);
    batch_norm_call call;
} batch_norm_work;

static void batch_norm_part(const fsq_team *team, void *context) {
    const batch_norm_work *w = context;
    ptrdiff_t from, to;
    fsq_share(team, w->call.C, w->call.L == 1 ? batch_norm_grain : 1, &from, &to);
    if (from < to) w->kernel(&w->call, from, to);
}

static void batch_norm_run(batch_norm_work *w, int threads) {
    double elements = (double)w->call.N * (double)w->call.C * (double)w->call.L;
    fsq_parallel(fsq_threads_for(4 * elements / FSQ_FN(kernels_now)()->lanes, threads), batch_norm_part, w);
}

void FSQ_FN(batch_norm_forward)(real *y, real *mean, real *variance, const real *x, const real *weight, const real *bias, ptrdiff_t N, ptrdiff_t C,
                                ptrdiff_t L, double eps, int given, int threads) {
    batch_norm_work w = {FSQ_FN(kernels_now)()->batch_norm_forward, {.y = y, .mean = mean, .variance = variance, .x = x, .weight = weight, .bias = bias,
                         .N = N, .C = C, .L = L, .eps = (real)eps, .given = given}};
    batch_norm_run(&w, threads);
}

void FSQ_FN(batch_norm_backward)(real *dx, real *dweight, real *dbias, const real *dy, const real *x, const real *mean, const real *variance,
                                 const real *weight, ptrdiff_t N, ptrdiff_t C, ptrdiff_t L, double eps, int given, int threads) {
    batch_norm_work w = {FSQ_FN(kernels_now)()->batch_norm_backward, {.dx = dx, .dweight = dweight, .dbias = dbias, .dy = dy, .x = x, .mean = (real *)mean,
                         .variance = (real *)variance, .weight = weight, .N = N, .C = C, .L = L, .eps = (real)eps, .given = given}};
    batch_norm_run(&w, threads);
}
