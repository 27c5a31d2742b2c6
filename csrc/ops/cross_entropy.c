/* cross_entropy.c - threads over the rows of kernels/cross_entropy.c. */
#include "../core/threads.h"
#include "../kernels/kernels.h"

typedef struct {
    real *losses, *lse;
    const real *logits;
    const int64_t *targets;
    ptrdiff_t N, V;
    int64_t ignore_index;
    double smoothing;
} cross_entropy_forward_call;

static void cross_entropy_forward_part(const fsq_team *team, void *context) {
    const cross_entropy_forward_call *c = context;
    const FSQ_FN(kernels) *k = FSQ_FN(kernels_now)();
    ptrdiff_t from, to;
    fsq_share(team, c->N, k->lanes, &from, &to);
    if (from < to)
        k->cross_entropy_forward(c->losses + from, c->lse + from, c->logits + from * c->V, c->targets + from, to - from, c->V, c->ignore_index,
                                 c->smoothing);
}

void FSQ_FN(cross_entropy_forward)(real *losses, real *lse, const real *logits, const int64_t *targets, ptrdiff_t N, ptrdiff_t V,
                                   int64_t ignore_index, double smoothing, int threads) {
    cross_entropy_forward_call c = {losses, lse, logits, targets, N, V, ignore_index, smoothing};
    double nanoseconds = (double)N * (15 + (double)V / FSQ_FN(kernels_now)()->lanes * 5);
    fsq_parallel(fsq_threads_for(nanoseconds, threads), cross_entropy_forward_part, &c);
}

typedef struct {
    real *dlogits;
    const real *lse, *logits;
    const int64_t *targets;
    const real *dlosses;
    ptrdiff_t dlosses_step, N, V;
    int64_t ignore_index;
    double smoothing;
} cross_entropy_backward_call;

static void cross_entropy_backward_part(const fsq_team *team, void *context) {
    const cross_entropy_backward_call *c = context;
    ptrdiff_t from, to;
    fsq_share(team, c->N, 1, &from, &to);
    if (from < to)
        FSQ_FN(kernels_now)()->cross_entropy_backward(c->dlogits + from * c->V, c->lse + from, c->logits + from * c->V, c->targets + from,
                                                      c->dlosses + from * c->dlosses_step, c->dlosses_step, to - from, c->V, c->ignore_index,
                                                      c->smoothing);
}

void FSQ_FN(cross_entropy_backward)(real *dlogits, const real *lse, const real *logits, const int64_t *targets, const real *dlosses,
                                    ptrdiff_t dlosses_step, ptrdiff_t N, ptrdiff_t V, int64_t ignore_index, double smoothing, int threads) {
    cross_entropy_backward_call c = {dlogits, lse, logits, targets, dlosses, dlosses_step, N, V, ignore_index, smoothing};
    double nanoseconds = (double)N * (15 + (double)V / FSQ_FN(kernels_now)()->lanes * 4);
    fsq_parallel(fsq_threads_for(nanoseconds, threads), cross_entropy_backward_part, &c);
}
