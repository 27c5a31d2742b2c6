/* dropout.c - threads over the elements of kernels/dropout.c: an element's mask depends on its position alone. */
#include "../core/threads.h"
#include "../kernels/kernels.h"

#include <math.h>
#include <string.h>

enum { dropout_grain = 1024 };

typedef struct {
    real *y;
    const real *x;
    ptrdiff_t n;
    uint32_t threshold;
    real factor;
    uint64_t seed;
    uint32_t layer, call;
} dropout_call;

static void dropout_part(const fsq_team *team, void *context) {
    const dropout_call *c = context;
    ptrdiff_t from, to;
    fsq_share(team, c->n, dropout_grain, &from, &to);
    if (from < to) FSQ_FN(kernels_now)()->dropout(c->y, c->x, from, to - from, c->threshold, c->factor, c->seed, c->layer, c->call);
}

void FSQ_FN(dropout)(real *y, const real *x, ptrdiff_t n, double p, uint64_t seed, uint32_t layer, uint32_t call, int threads) {
    double threshold = ceil(p * 0x1p32);                    /* the least word that is kept */
    if (threshold >= 0x1p32) {
        if (n > 0) memset(y, 0, (size_t)n * sizeof(real));
        return;
    }
    dropout_call c = {y, x, n, (uint32_t)threshold, (real)(1 / (1 - p)), seed, layer, call};
    double nanoseconds = (double)n / FSQ_FN(kernels_now)()->lanes * 8 * sizeof(real) / 4;
    fsq_parallel(fsq_threads_for(nanoseconds, threads), dropout_part, &c);
}
