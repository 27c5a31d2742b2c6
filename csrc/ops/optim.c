/* optim.c - threads over the elements of kernels/optim.c, and the constants of an update. */
#include "../core/threads.h"
#include "../kernels/kernels.h"

#include <math.h>

enum {
    optim_grain = 1024,                                     /* elements; whole cache lines for each worker */
    optim_chunks = 256,                                     /* partial sums of squares, at most: they stand on the stack */
    optim_least_chunk = 4096                                /* elements */
};

typedef struct {
    const real *x;
    ptrdiff_t n, chunk;
    double sums[optim_chunks];
} optim_sum_call;

static void optim_sum_part(const fsq_team *team, void *context) {
    optim_sum_call *c = context;
    ptrdiff_t from, to;
    fsq_share(team, (c->n + c->chunk - 1) / c->chunk, 1, &from, &to);
    for (; from < to; from++) {
        ptrdiff_t start = from * c->chunk, left = c->n - start;
        c->sums[from] = FSQ_FN(kernels_now)()->sum_squares(c->x + start, left < c->chunk ? left : c->chunk);
    }
}

/* The size of the chunks follows from n alone, and they are added up in their order. */
double FSQ_FN(sum_squares)(const real *x, ptrdiff_t n, int threads) {
    optim_sum_call c = {.x = x, .n = n};
    ptrdiff_t each = (n + optim_chunks - 1) / optim_chunks;
    c.chunk = (each + optim_least_chunk - 1) / optim_least_chunk * optim_least_chunk;
    if (n <= 0) return 0;
    fsq_parallel(fsq_threads_for((double)n * sizeof(real) / 15, threads), optim_sum_part, &c);   /* 15 bytes in a nanosecond */
    double sum = 0;
    for (ptrdiff_t i = 0; i * c.chunk < n; i++) sum += c.sums[i];
    return sum;
}

typedef struct {
    real *w, *m, *v;
    const real *grad;
    ptrdiff_t n;
    const void *constants;
} optim_call;

static void optim_scale_part(const fsq_team *team, void *context) {
    const optim_call *c = context;
    ptrdiff_t from, to;
    fsq_share(team, c->n, optim_grain, &from, &to);
    if (from < to) FSQ_FN(kernels_now)()->scale(c->w + from, to - from, *(const real *)c->constants);
}

void FSQ_FN(scale)(real *x, ptrdiff_t n, double factor, int threads) {
    real by = (real)factor;
    optim_call c = {.w = x, .n = n, .constants = &by};
    fsq_parallel(fsq_threads_for((double)n * sizeof(real) / 15, threads), optim_scale_part, &c);
}

static void optim_sgd_part(const fsq_team *team, void *context) {
    const optim_call *c = context;
    ptrdiff_t from, to;
    fsq_share(team, c->n, optim_grain, &from, &to);
    if (from < to) FSQ_FN(kernels_now)()->sgd(c->w + from, c->v ? c->v + from : NULL, c->grad + from, to - from, c->constants);
}

void FSQ_FN(sgd)(real *w, real *velocity, const real *grad, ptrdiff_t n, double lr, double momentum, int nesterov, int first,
                 double weight_decay, int threads) {
    sgd_constants s = {(real)lr, (real)momentum, (real)weight_decay, nesterov, first};
    optim_call c = {.w = w, .v = momentum != 0 ? velocity : NULL, .grad = grad, .n = n, .constants = &s};
    fsq_parallel(fsq_threads_for((double)n * sizeof(real) / 6, threads), optim_sgd_part, &c);
}

static void optim_adam_part(const fsq_team *team, void *context) {
    const optim_call *c = context;
    ptrdiff_t from, to;
    fsq_share(team, c->n, optim_grain, &from, &to);
    if (from < to) FSQ_FN(kernels_now)()->adam(c->w + from, c->m + from, c->v + from, c->grad + from, to - from, c->constants);
}

void FSQ_FN(adam)(real *w, real *m, real *v, const real *grad, ptrdiff_t n, double lr, double beta1, double beta2, double eps,
                  double weight_decay, int decoupled, int64_t step, int threads) {
    adam_constants s = {
        .beta1 = (real)beta1, .other1 = (real)(1 - beta1), .beta2 = (real)beta2, .other2 = (real)(1 - beta2),
        .rate = (real)(lr / (1 - pow(beta1, (double)step))), .correction = (real)(1 / (1 - pow(beta2, (double)step))), .eps = (real)eps,
        .weight_decay = decoupled ? 0 : (real)weight_decay, .keep = decoupled ? (real)(1 - lr * weight_decay) : 1,
    };
    optim_call c = {.w = w, .m = m, .v = v, .grad = grad, .n = n, .constants = &s};
    fsq_parallel(fsq_threads_for((double)n * sizeof(real) / 4, threads), optim_adam_part, &c);
}
