/* bias.c - threads over the columns of kernels/bias.c: a column is one chain of additions and belongs to one worker. */
#include "../core/threads.h"
#include "../kernels/kernels.h"

enum { bias_grain = 64 / sizeof(real) };                    /* whole cache lines of db for each worker */

typedef struct {
    real *db;
    const real *dy;
    ptrdiff_t M, N;
} bias_call;

static void bias_part(const fsq_team *team, void *context) {
    const bias_call *c = context;
    ptrdiff_t from, to;
    fsq_share(team, c->N, bias_grain, &from, &to);
    if (from < to) FSQ_FN(kernels_now)()->bias_backward(c->db + from, c->dy + from, c->M, c->N, to - from, 0);
}

void FSQ_FN(bias_backward)(real *db, const real *dy, ptrdiff_t M, ptrdiff_t N, int threads) {
    bias_call c = {db, dy, M, N};
    double nanoseconds = (double)M * (double)N * sizeof(real) / 20;             /* 20 bytes in a nanosecond */
    fsq_parallel(fsq_threads_for(nanoseconds, threads), bias_part, &c);
}
