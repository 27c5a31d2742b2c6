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

/* An update: what it works on, and what it does with `n` elements of w and of the state from `at` on. */
typedef struct optim_call {
    void (*span)(const struct optim_call *call, ptrdiff_t at, const real *grad, ptrdiff_t n);
    real *w, *state, *second, *third;                       /* NULL: none */
    const real *grad;
    const int64_t *rows;
    ptrdiff_t n, width;
    const void *constants;
} optim_call;

static real *optim_at(real *x, ptrdiff_t at) { return x ? x + at : NULL; }

static void optim_part(const fsq_team *team, void *context) {
    const optim_call *c = context;
    ptrdiff_t from, to;
    if (!c->rows) {
        fsq_share(team, c->n, optim_grain, &from, &to);
        if (from < to) c->span(c, from, c->grad + from, to - from);
        return;
    }
    fsq_share(team, c->n / c->width, 1, &from, &to);
    for (; from < to; from++) c->span(c, c->rows[from] * c->width, c->grad + from * c->width, c->width);
}

/* `speed`: bytes of w that one thread changes in a nanosecond. */
static void optim_run(optim_call *c, double speed, int threads) {
    if (c->n > 0) fsq_parallel(fsq_threads_for((double)c->n * sizeof(real) / speed, threads), optim_part, c);
}

static void optim_scale_span(const optim_call *c, ptrdiff_t at, const real *grad, ptrdiff_t n) {
    (void)grad;
    FSQ_FN(kernels_now)()->scale(c->w + at, n, *(const real *)c->constants);
}

void FSQ_FN(scale)(real *x, ptrdiff_t n, double factor, int threads) {
    real by = (real)factor;
    optim_run(&(optim_call){.span = optim_scale_span, .w = x, .grad = x, .n = n, .constants = &by}, 15, threads);
}

static void optim_sgd_span(const optim_call *c, ptrdiff_t at, const real *grad, ptrdiff_t n) {
    FSQ_FN(kernels_now)()->sgd(c->w + at, optim_at(c->state, at), grad, n, c->constants);
}

void FSQ_FN(sgd)(real *w, real *velocity, const real *grad, const int64_t *rows, ptrdiff_t n, ptrdiff_t width,
                 double lr, double momentum, int nesterov, int first, double weight_decay, int threads) {
    sgd_constants s = {(real)lr, (real)momentum, (real)weight_decay, nesterov, first};
    optim_call c = {.span = optim_sgd_span, .w = w, .state = momentum != 0 ? velocity : NULL, .grad = grad, .rows = rows, .n = n, .width = width, .constants = &s};
    optim_run(&c, 6, threads);
}

static void optim_adagrad_span(const optim_call *c, ptrdiff_t at, const real *grad, ptrdiff_t n) {
    FSQ_FN(kernels_now)()->adagrad(c->w + at, c->state + at, grad, n, c->constants);
}

void FSQ_FN(adagrad)(real *w, real *sum, const real *grad, const int64_t *rows, ptrdiff_t n, ptrdiff_t width,
                     double lr, double eps, double weight_decay, int threads) {
    adagrad_constants s = {(real)lr, (real)eps, (real)weight_decay};
    optim_call c = {.span = optim_adagrad_span, .w = w, .state = sum, .grad = grad, .rows = rows, .n = n, .width = width, .constants = &s};
    optim_run(&c, 5, threads);
}

static void optim_rmsprop_span(const optim_call *c, ptrdiff_t at, const real *grad, ptrdiff_t n) {
    FSQ_FN(kernels_now)()->rmsprop(c->w + at, c->state + at, optim_at(c->second, at), optim_at(c->third, at), grad, n, c->constants);
}

void FSQ_FN(rmsprop)(real *w, real *square, real *velocity, real *mean, const real *grad, ptrdiff_t n,
                     double lr, double alpha, double eps, double momentum, double weight_decay, int threads) {
    rmsprop_constants s = {(real)lr, (real)alpha, (real)(1 - alpha), (real)eps, (real)momentum, (real)weight_decay};
    optim_call c = {.span = optim_rmsprop_span, .w = w, .state = square, .second = momentum != 0 ? velocity : NULL, .third = mean,
                    .grad = grad, .n = n, .constants = &s};
    optim_run(&c, 4, threads);
}

static void optim_adam_span(const optim_call *c, ptrdiff_t at, const real *grad, ptrdiff_t n) {
    FSQ_FN(kernels_now)()->adam(c->w + at, c->state + at, c->second + at, grad, n, c->constants);
}

void FSQ_FN(adam)(real *w, real *m, real *v, const real *grad, const int64_t *rows, ptrdiff_t n, ptrdiff_t width, double lr, double beta1,
                  double beta2, double eps, double weight_decay, int decoupled, int64_t step, int threads) {
    adam_constants s = {
        .beta1 = (real)beta1, .other1 = (real)(1 - beta1), .beta2 = (real)beta2, .other2 = (real)(1 - beta2),
        .rate = (real)(lr / (1 - pow(beta1, (double)step))), .correction = (real)(1 / (1 - pow(beta2, (double)step))), .eps = (real)eps,
        .weight_decay = decoupled ? 0 : (real)weight_decay, .keep = decoupled ? (real)(1 - lr * weight_decay) : 1,
    };
    optim_call c = {.span = optim_adam_span, .w = w, .state = m, .second = v, .grad = grad, .rows = rows, .n = n, .width = width, .constants = &s};
    optim_run(&c, 4, threads);
}
