/* test_ops.c - the element- and row-wise ops against their definitions in wider arithmetic; compiled once for each float type. */
#include <float.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "check.h"
#include "core/real.h"
#include "fastseq.h"

#if defined FSQ_F32
typedef double wide;
#define EPSILON FLT_EPSILON
#define LEAST FLT_TRUE_MIN
#define TEST_NAME(name) name##_f32
#else
typedef long double wide;
#define EPSILON DBL_EPSILON
#define LEAST DBL_TRUE_MIN
#define TEST_NAME(name) name##_f64
#endif
#define INF ((real)INFINITY)

/* Whether y is `expected` up to `units` of the float type's epsilon, relative, and `absolute` times it; NaN and infinity exactly. */
static int near(real y, wide expected, double units, double absolute) {
    if (isnan(expected) || isnan(y)) return isnan(expected) && isnan(y);
    if (isinf(expected) || isinf(y)) return (wide)y == expected;
    return fabsl((long double)y - expected) <= EPSILON * (units * fabsl((long double)expected) + absolute) + 2 * LEAST;
}

static real *reals(ptrdiff_t n) { return check_buffer((size_t)n * sizeof(real), sizeof(real)); }
static real *random_reals(ptrdiff_t n, double low, double high) {
    real *x = reals(n);
    for (ptrdiff_t i = 0; i < n; i++) x[i] = (real)check_uniform(low, high);
    return x;
}
static int same_bits(const real *a, const real *b, ptrdiff_t n) { return n == 0 || memcmp(a, b, (size_t)n * sizeof(real)) == 0; }
static real *copy_of(const real *x, ptrdiff_t n) {
    real *y = reals(n);
    if (n) memcpy(y, x, (size_t)n * sizeof(real));
    return y;
}

static const ptrdiff_t lengths[] = {0, 1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 33, 63, 64, 65, 100, 1023, 2500};
enum { lengths_count = sizeof lengths / sizeof lengths[0] };

/* ---------------------------------------------------------------- pointwise */

static const double parameter = 0.25;                       /* exact in both types */

static wide function_of(wide x, fsq_function f) {
    switch (f) {
        case FSQ_EXP: return expl(x);
        case FSQ_LOG: return logl(x);
        case FSQ_TANH: return tanhl(x);
        case FSQ_SIGMOID: return x < 0 ? expl(x) / (1 + expl(x)) : 1 / (1 + expl(-x));
        case FSQ_RELU: return x < 0 ? 0 : x;
        case FSQ_ERF: return erfl(x);
        case FSQ_GELU: return x * erfcl(-x * sqrtl(0.5L)) / 2;
        case FSQ_GELU_TANH: return x / (1 + expl(-2 * sqrtl(2 / acosl(-1)) * (x + 0.044715L * x * x * x)));
        case FSQ_SILU: return x / (1 + expl(-x));
        case FSQ_SOFTPLUS: return log1pl(expl(x));
        case FSQ_ELU: return x < 0 ? parameter * expm1l(x) : x;
        case FSQ_LEAKY_RELU: return x < 0 ? parameter * x : x;
        default: return x;
    }
}

static wide derivative_of(wide saved, wide dy, fsq_function f) {
    switch (f) {
        case FSQ_EXP: return dy * saved;
        case FSQ_LOG: return dy / saved;
        case FSQ_TANH: return dy * (1 - saved * saved);
        case FSQ_SIGMOID: return dy * saved * (1 - saved);
        case FSQ_RELU: return saved <= 0 ? 0 : dy;
        case FSQ_ERF: return dy * 2 / sqrtl(acosl(-1)) * expl(-saved * saved);
        case FSQ_GELU: return dy * (erfcl(-saved * sqrtl(0.5L)) / 2 + saved * expl(-saved * saved / 2) / sqrtl(2 * acosl(-1)));
        case FSQ_GELU_TANH: {
            wide scale = 2 * sqrtl(2 / acosl(-1)), p = 1 / (1 + expl(-scale * (saved + 0.044715L * saved * saved * saved)));
            return dy * (p + saved * p * (1 - p) * scale * (1 + 3 * 0.044715L * saved * saved));
        }
        case FSQ_SILU: return dy * (1 + saved / (1 + expl(saved))) / (1 + expl(-saved));
        case FSQ_SOFTPLUS: return dy / (1 + expl(-saved));
        case FSQ_ELU: return saved > 0 ? dy : dy * parameter * expl(saved);
        case FSQ_LEAKY_RELU: return saved > 0 ? dy : dy * parameter;
        default: return dy;
    }
}

static void test_pointwise(void) {
    for (int f = FSQ_IDENTITY; f <= FSQ_LEAKY_RELU; f++)
        for (int l = 0; l < lengths_count; l++) {
            ptrdiff_t n = lengths[l];
            real *x = random_reals(n, f == FSQ_LOG ? 0.01 : -6, 6), *y = reals(n), *dx = reals(n), *dy = random_reals(n, -1, 1), *one = reals(1);
            FSQ_FN(pointwise_forward)(y, x, n, (fsq_function)f, parameter, check_threads);
            const real *saved = f == FSQ_LOG || f >= FSQ_ERF ? x : y;
            FSQ_FN(pointwise_backward)(dx, saved, dy, n, (fsq_function)f, parameter, check_threads);
            for (ptrdiff_t i = 0; i < n; i++) {
                CHECK_WITH(near(y[i], function_of(x[i], (fsq_function)f), f == FSQ_GELU_TANH ? 60 : 7, 0), "function %d of %a is %a", f, (double)x[i], (double)y[i]);
                CHECK_WITH(near(dx[i], derivative_of(saved[i], dy[i], (fsq_function)f), f == FSQ_ERF ? 40 : 4, 4), "derivative %d at %a is %a", f, (double)x[i], (double)dx[i]);
                FSQ_FN(pointwise_forward)(one, x + i, 1, (fsq_function)f, parameter, 1);
                CHECK(same_bits(one, y + i, 1));                              /* the place in the array does not matter */
            }
            real *inplace = copy_of(x, n), *dinplace = copy_of(dy, n);
            FSQ_FN(pointwise_forward)(inplace, inplace, n, (fsq_function)f, parameter, check_threads);
            FSQ_FN(pointwise_backward)(dinplace, saved, dinplace, n, (fsq_function)f, parameter, check_threads);
            CHECK(same_bits(inplace, y, n) && same_bits(dinplace, dx, n));
            check_free_all();
        }
}

static void test_special_values(void) {
    const real nan = (real)NAN, x[7] = {(real)0.0, (real)-0.0, INF, -INF, nan, LEAST, -LEAST};
    const real expected[][7] = {
        [FSQ_IDENTITY] = {(real)0.0, (real)-0.0, INF, -INF, nan, LEAST, -LEAST},
        [FSQ_EXP] = {1, 1, INF, 0, nan, 1, 1},
        [FSQ_LOG] = {-INF, -INF, INF, nan, nan, (real)logl(LEAST), nan},
        [FSQ_TANH] = {(real)0.0, (real)-0.0, 1, -1, nan, LEAST, -LEAST},
        [FSQ_SIGMOID] = {(real)0.5, (real)0.5, 1, 0, nan, (real)0.5, (real)0.5},
        [FSQ_RELU] = {0, 0, INF, 0, nan, LEAST, 0},
        [FSQ_ERF] = {(real)0.0, (real)-0.0, 1, -1, nan, LEAST, -LEAST},
        [FSQ_GELU] = {(real)0.0, (real)-0.0, INF, (real)-0.0, nan, LEAST, (real)-0.0},
        [FSQ_GELU_TANH] = {(real)0.0, (real)-0.0, INF, (real)-0.0, nan, LEAST, (real)-0.0},
        [FSQ_SILU] = {(real)0.0, (real)-0.0, INF, (real)-0.0, nan, LEAST, (real)-0.0},
        [FSQ_SOFTPLUS] = {(real)0.6931471805599453094L, (real)0.6931471805599453094L, INF, 0, nan, (real)0.6931471805599453094L, (real)0.6931471805599453094L},
        [FSQ_ELU] = {(real)0.0, (real)-0.0, INF, (real)-0.25, nan, LEAST, (real)-0.0},
        [FSQ_LEAKY_RELU] = {(real)0.0, (real)-0.0, INF, -INF, nan, LEAST, (real)-0.0},
    };
    for (int f = FSQ_IDENTITY; f <= FSQ_LEAKY_RELU; f++) {
        real y[7];
        FSQ_FN(pointwise_forward)(y, x, 7, (fsq_function)f, parameter, check_threads);
        for (int i = 0; i < 7; i++) {
            CHECK_WITH(near(y[i], expected[f][i], 1, 0), "function %d of %a is %a", f, (double)x[i], (double)y[i]);
            if (y[i] == 0 && f != FSQ_RELU && x[i] != LEAST) CHECK(!signbit(y[i]) == !signbit(expected[f][i]));
        }
    }
}

/* ---------------------------------------------------------------- bias, softmax, cross_entropy */

static void test_bias(void) {
    static const ptrdiff_t rows[] = {0, 1, 2, 7, 8, 9, 30};
    for (int m = 0; m < 7; m++)
        for (int l = 0; l < 18; l++) {
            ptrdiff_t M = rows[m], N = lengths[l];
            real *dy = random_reals(M * N, -1, 1), *db = reals(N);
            FSQ_FN(bias_backward)(db, dy, M, N, check_threads);
            for (ptrdiff_t j = 0; j < N; j++) {
                real sum = 0;                                                 /* first row to last: the very same bits */
                for (ptrdiff_t i = 0; i < M; i++) sum += dy[i * N + j];
                CHECK(db[j] == sum);
            }
            check_free_all();
        }
}

static wide log_sum_exp(const real *x, ptrdiff_t n) {
    wide most = -(wide)INFINITY, sum = 0;
    for (ptrdiff_t i = 0; i < n; i++) most = x[i] > most ? x[i] : most;
    for (ptrdiff_t i = 0; i < n; i++) sum += expl(x[i] - most);
    return most + logl(sum);
}

static void test_softmax(void) {
    static const ptrdiff_t rows[] = {0, 1, 3, 17};
    for (int m = 0; m < 4; m++)
        for (int l = 0; l < lengths_count; l++) {
            ptrdiff_t M = rows[m], N = lengths[l];
            real *x = random_reals(M * N, -20, 20), *y = reals(M * N), *dy = random_reals(M * N, -1, 1), *dx = reals(M * N), *row = reals(N);
            FSQ_FN(softmax_forward)(y, x, M, N, check_threads);
            FSQ_FN(softmax_backward)(dx, y, dy, M, N, check_threads);
            for (ptrdiff_t r = 0; r < M && N; r++) {
                wide lse = log_sum_exp(x + r * N, N), dot = 0;
                for (ptrdiff_t i = r * N; i < (r + 1) * N; i++) dot += (wide)y[i] * dy[i];
                for (ptrdiff_t i = r * N; i < (r + 1) * N; i++) {
                    CHECK(near(y[i], expl(x[i] - lse), 60, 0));
                    CHECK(near(dx[i], y[i] * (dy[i] - dot), 4, 40 * (double)y[i]));
                }
                FSQ_FN(softmax_forward)(row, x + r * N, 1, N, 1);
                CHECK(same_bits(row, y + r * N, N));                          /* whatever the rows around it */
            }
            real *inplace = copy_of(x, M * N), *dinplace = copy_of(dy, M * N);
            FSQ_FN(softmax_forward)(inplace, inplace, M, N, check_threads);
            FSQ_FN(softmax_backward)(dinplace, y, dinplace, M, N, check_threads);
            CHECK(same_bits(inplace, y, M * N) && same_bits(dinplace, dx, M * N));
            check_free_all();
        }
}

static void test_softmax_special(void) {
    enum { N = 37 };
    real x[4 * N], y[4 * N];
    for (int i = 0; i < 4 * N; i++) x[i] = i / N == 0 ? -INF : (real)i / 10;
    x[N + 36] = (real)NAN;                                                    /* in the partial vector */
    x[2 * N + 5] = -INF;
    x[3 * N] = INF;
    FSQ_FN(softmax_forward)(y, x, 4, N, check_threads);
    wide sum = 0;
    for (int i = 0; i < N; i++) {
        CHECK(y[i] == 0);
        CHECK(isnan(y[N + i]));
        CHECK(i == 0 ? isnan(y[3 * N]) : y[3 * N + i] == 0 || isnan(y[3 * N + i]));
        sum += y[2 * N + i];
    }
    CHECK(y[2 * N + 5] == 0 && near((real)sum, 1, 8, 0));
}

static void test_log_softmax(void) {
    for (int l = 1; l < lengths_count; l++) {
        ptrdiff_t M = 19, N = lengths[l];
        real *x = random_reals(M * N, -20, 20), *y = reals(M * N), *dy = random_reals(M * N, -1, 1), *dx = reals(M * N);
        for (ptrdiff_t i = 0; i < N; i++) x[2 * N + i] = -INF;
        FSQ_FN(log_softmax_forward)(y, x, M, N, check_threads);
        FSQ_FN(log_softmax_backward)(dx, y, dy, M, N, check_threads);
        for (ptrdiff_t r = 0; r < M; r++) {
            wide lse = r == 2 ? 0 : log_sum_exp(x + r * N, N), sum = 0;
            for (ptrdiff_t i = r * N; i < (r + 1) * N; i++) sum += dy[i];
            for (ptrdiff_t i = r * N; i < (r + 1) * N; i++) {
                CHECK(near(y[i], x[i] - lse, 4, 40));
                CHECK(near(dx[i], dy[i] - expl(y[i]) * sum, 4, 4 + (40 + 4 * fabs((double)sum)) * (double)expl(y[i])));
            }
        }
        check_free_all();
    }
}

/* Rows against their definition; a result of the sum with the residual where the sum itself may lie. */
static void test_layer_norm(void) {
    for (int l = 1; l < 18; l++)
        for (int centred = 0; centred < 2; centred++) {
            ptrdiff_t M = 21, N = lengths[l];
            real *x = random_reals(M * N, -2, 2), *residual = random_reals(M * N, -2, 2), *weight = random_reals(N, -2, 2), *bias = random_reals(N, -2, 2);
            real *y = reals(M * N), *s = reals(M * N), *mean = reals(M), *rstd = reals(M), *dy = random_reals(M * N, -1, 1), *ds = random_reals(M * N, -1, 1);
            real *dx = reals(M * N), *dweight = reals(N), *dbias = reals(N), *inplace = copy_of(residual, M * N);
            void *work = check_buffer(FSQ_FN(layer_norm_backward_work)(M, N), sizeof(real));
            FSQ_FN(layer_norm_forward)(y, s, centred ? mean : NULL, rstd, x, residual, weight, bias, M, N, 0.5, centred, check_threads);
            FSQ_FN(layer_norm_backward)(dx, dweight, dbias, dy, ds, s, centred ? mean : NULL, rstd, weight, M, N, centred, check_threads, work);
            wide *sums = check_buffer((size_t)N * sizeof(wide), 0);
            for (ptrdiff_t i = 0; i < N; i++) sums[i] = 0;
            for (ptrdiff_t r = 0; r < M; r++) {
                wide m = 0, variance = 0, all = 0, dot = 0;
                for (ptrdiff_t i = r * N; i < (r + 1) * N; i++) m += centred ? s[i] / (wide)N : 0;
                for (ptrdiff_t i = r * N; i < (r + 1) * N; i++) variance += (s[i] - m) * (s[i] - m) / N;
                wide inverse = 1 / sqrtl(variance + 0.5L);
                for (ptrdiff_t i = 0; i < N; i++) {
                    wide hat = (s[r * N + i] - m) * inverse, d = (wide)dy[r * N + i] * weight[i];
                    CHECK(s[r * N + i] == x[r * N + i] + residual[r * N + i]);
                    CHECK(near(y[r * N + i], hat * weight[i] + bias[i], 10, 60));
                    all += centred ? d / N : 0, dot += d * hat / N, sums[i] += dy[r * N + i] * hat;
                }
                for (ptrdiff_t i = 0; i < N; i++) {
                    wide hat = (s[r * N + i] - m) * inverse, d = (wide)dy[r * N + i] * weight[i];
                    CHECK(near(dx[r * N + i], ds[r * N + i] + inverse * (d - all - hat * dot), 10, 100));
                }
            }
            for (ptrdiff_t i = 0; i < N; i++) CHECK(near(dweight[i], sums[i], 10, 400));
            FSQ_FN(layer_norm_forward)(x, inplace, centred ? mean : NULL, rstd, x, inplace, weight, bias, M, N, 0.5, centred, check_threads);
            CHECK(same_bits(x, y, M * N) && same_bits(inplace, s, M * N));
            check_free_all();
        }
}

/* The same bits as product, cross_entropy, and their derivatives one after the other; V large enough for several chunks of rows. */
static void test_linear_cross_entropy(void) {
    static const ptrdiff_t sizes[][3] = {{0, 3, 5}, {1, 1, 1}, {7, 5, 17}, {21, 33, 9}, {100, 2, 11000}};
    for (int i = 0; i < 5; i++) {
        ptrdiff_t N = sizes[i][0], H = sizes[i][1], V = sizes[i][2];
        real *x = random_reals(N * H, -1, 1), *weight = random_reals(V * H, -1, 1), *bias = random_reals(V, -1, 1), *dlosses = random_reals(N, -1, 1);
        real *losses = reals(N), *lse = reals(N), *dx = reals(N * H), *dweight = reals(V * H), *dbias = reals(V);
        real *want = reals(N), *want_lse = reals(N), *logits = reals(N * V), *product = reals(N * H), *of_weight = reals(V * H), *of_bias = reals(V);
        int64_t *targets = check_buffer((size_t)N * 8, 0);
        for (ptrdiff_t r = 0; r < N; r++) targets[r] = r % 5 == 4 ? -100 : (int64_t)(check_bits() % (uint64_t)V);
        void *work = check_buffer(FSQ_FN(linear_cross_entropy_forward_work)(N, H, V, check_threads), sizeof(real));
        void *work_back = check_buffer(FSQ_FN(linear_cross_entropy_backward_work)(N, H, V, check_threads), sizeof(real));
        FSQ_FN(linear_cross_entropy_forward)(losses, lse, x, weight, bias, targets, N, H, V, -100, 0.1, check_threads, work);
        FSQ_FN(linear_cross_entropy_backward)(dx, dweight, dbias, lse, x, weight, bias, targets, dlosses, 1, N, H, V, -100, 0.1, check_threads, work_back);
        ptrdiff_t most = N + H + V;
        void *plain = check_buffer(FSQ_FN(matmul_work)(most, most, most, 0, 1), sizeof(real));
        FSQ_FN(matmul)(logits, x, weight, NULL, bias, 1, N, V, H, 0, V, 0, H, 1, 0, 1, H, 0, FSQ_IDENTITY, 1, plain);
        FSQ_FN(cross_entropy_forward)(want, want_lse, logits, targets, N, V, -100, 0.1, 1);
        FSQ_FN(cross_entropy_backward)(logits, want_lse, logits, targets, dlosses, 1, N, V, -100, 0.1, 1);
        FSQ_FN(matmul)(product, logits, weight, NULL, NULL, 1, N, H, V, 0, H, 0, V, 1, 0, H, 1, 0, FSQ_IDENTITY, 1, plain);
        FSQ_FN(matmul)(of_weight, logits, x, NULL, NULL, 1, V, H, N, 0, H, 0, 1, V, 0, H, 1, 0, FSQ_IDENTITY, 1, plain);
        FSQ_FN(bias_backward)(of_bias, logits, N, V, 1);
        CHECK(same_bits(losses, want, N) && same_bits(lse, want_lse, N) && same_bits(dx, product, N * H));
        CHECK(same_bits(dweight, of_weight, V * H) && same_bits(dbias, of_bias, V));
        check_free_all();
    }
}

static void test_cross_entropy(void) {
    static const double smoothings[] = {0, 0.1};
    for (int l = 1; l < lengths_count; l++)
        for (int s = 0; s < 2; s++)
            for (int step = 0; step < 2; step++) {
                ptrdiff_t V = lengths[l], N = 21;
                double smoothing = smoothings[s];
                real *x = random_reals(N * V, -8, 8), *losses = reals(N), *lse = reals(N), *dlosses = random_reals(step ? N : 1, -1, 1), *dx = reals(N * V);
                int64_t *targets = check_buffer((size_t)N * 8, 0);
                for (ptrdiff_t r = 0; r < N; r++) targets[r] = r % 5 == 4 ? -100 : (int64_t)(check_bits() % (uint64_t)V);
                FSQ_FN(cross_entropy_forward)(losses, lse, x, targets, N, V, -100, smoothing, check_threads);
                FSQ_FN(cross_entropy_backward)(dx, lse, x, targets, dlosses, step, N, V, -100, smoothing, check_threads);
                for (ptrdiff_t r = 0; r < N; r++) {
                    const real *logits = x + r * V;
                    wide exact = log_sum_exp(logits, V), expected = 0;
                    CHECK(near(lse[r], exact, 4, 8));
                    for (ptrdiff_t v = 0; v < V; v++) {
                        wide q = (v == targets[r]) * (1 - smoothing) + smoothing / (wide)V;
                        wide d = targets[r] == -100 ? 0 : (expl(logits[v] - exact) - q) * dlosses[r * step];
                        expected += q * logits[v];
                        CHECK(near(dx[r * V + v], d, 30, 4));
                    }
                    CHECK(near(losses[r], targets[r] == -100 ? 0 : exact - expected, 8, 24));
                    real loss, sum;
                    FSQ_FN(cross_entropy_forward)(&loss, &sum, logits, targets + r, 1, V, -100, smoothing, 1);
                    CHECK(loss == losses[r] && sum == lse[r]);
                }
                check_free_all();
            }
}

/* A small loss keeps its digits: logits 0 and -12 give log(1 + exp(-12)), not a difference of two large numbers. */
static void test_cross_entropy_confident(void) {
    real x[2] = {100, 88}, loss, lse;
    int64_t target = 0;
    FSQ_FN(cross_entropy_forward)(&loss, &lse, x, &target, 1, 2, -100, 0, 1);
    CHECK(near(loss, log1pl(expl(-12)), 0, 1));
}

/* ---------------------------------------------------------------- embedding, dropout */

static void test_embedding(void) {
    static const ptrdiff_t widths[] = {0, 1, 3, 8, 16, 33, 100};
    for (int w = 0; w < 7; w++)
        for (int64_t padding = -1; padding < 3; padding += 3) {
            ptrdiff_t n = 57, V = 11, D = widths[w];
            int64_t *ids = check_buffer((size_t)n * 8, 0);
            for (ptrdiff_t i = 0; i < n; i++) ids[i] = (int64_t)(check_bits() % 9);
            real *weight = random_reals(V * D, -1, 1), *y = reals(n * D), *dy = random_reals(n * D, -1, 1), *dw = reals(V * D);
            FSQ_FN(embedding_forward)(y, ids, weight, n, V, D, check_threads);
            for (ptrdiff_t i = 0; i < n; i++) CHECK(same_bits(y + i * D, weight + ids[i] * D, D));
            FSQ_FN(embedding_backward)(dw, dy, ids, n, V, D, padding, check_threads);
            for (ptrdiff_t v = 0; v < V; v++)
                for (ptrdiff_t j = 0; j < D; j++) {
                    real sum = 0;
                    for (ptrdiff_t i = 0; i < n; i++)
                        if (ids[i] == v && v != padding) sum += dy[i * D + j];
                    CHECK(dw[v * D + j] == sum);
                }
            FSQ_FN(embedding_backward)(dw, dy, ids, 0, V, D, padding, check_threads);
            for (ptrdiff_t i = 0; i < V * D; i++) CHECK(dw[i] == 0);
            check_free_all();
        }
}

static void test_dropout(void) {
    static const double ps[] = {0, 0.3, 0.5, 0.999, 1 - 0x1p-40, 1};
    for (int l = 0; l < lengths_count; l++)
        for (int k = 0; k < 6; k++) {
            ptrdiff_t n = lengths[l];
            double p = ps[k];
            uint64_t seed = check_bits();
            real *x = random_reals(n, 1, 2), *y = reals(n);
            FSQ_FN(dropout)(y, x, n, p, seed, 7, 9, check_threads);
            for (ptrdiff_t i = 0; i < n; i++) {
                uint32_t words[4], counter[4] = {(uint32_t)(i / 4), (uint32_t)((uint64_t)i / 4 >> 32), 9, 7};
                fsq_philox(words, seed, counter);
                CHECK(near(y[i], words[i % 4] >= p * 0x1p32 ? x[i] / (1 - (wide)p) : 0, 2, 0));
            }
            FSQ_FN(dropout)(x, x, n, p, seed, 7, 9, check_threads);
            CHECK(same_bits(x, y, n));
            check_free_all();
        }
}

/* ---------------------------------------------------------------- additive attention */

/* One query's scores, weights, output and, from dy, dL/d(scores) in wider arithmetic. */
static void additive_query(wide *w, wide *y, wide *ds, const real *q, const real *k, const real *v, const real *u, const real *dy, ptrdiff_t L,
                           ptrdiff_t D, ptrdiff_t Dv) {
    wide total = 0, mean = 0;
    for (ptrdiff_t j = 0; j < L; j++) {
        wide s = 0;
        for (ptrdiff_t d = 0; d < D; d++) s += u[d] * (wide)tanhl((wide)q[d] + k[j * D + d]);
        total += w[j] = expl(s);
    }
    for (ptrdiff_t c = 0; c < Dv; c++) y[c] = 0;
    for (ptrdiff_t j = 0; j < L; j++) {
        w[j] /= total, ds[j] = 0;
        for (ptrdiff_t c = 0; c < Dv; c++) {
            y[c] += w[j] * v[j * Dv + c];
            ds[j] += (wide)dy[c] * v[j * Dv + c];
        }
        mean += w[j] * ds[j];
    }
    for (ptrdiff_t j = 0; j < L; j++) ds[j] = w[j] * (ds[j] - mean);
}

static void test_additive_attention(void) {
    static const ptrdiff_t sizes[][4] = {{1, 1, 1, 1}, {1, 5, 17, 3}, {2, 3, 16, 8}, {3, 17, 33, 5}, {70, 9, 5, 17}, {5, 33, 7, 70}, {4, 6, 8, 1}};
    enum { B = 2 };
    for (size_t n = 0; n < sizeof sizes / sizeof sizes[0]; n++)
        for (int far = 0; far < 2; far++) {
            ptrdiff_t Tq = sizes[n][0], Tk = sizes[n][1], D = sizes[n][2], Dv = sizes[n][3];
            real *q = random_reals(B * Tq * D, -1, 1), *k = random_reals(B * Tk * D, -1, 1), *v = random_reals(B * Tk * Dv, -1, 1), *u = random_reals(D, -0.5, 0.5);
            real *dy = random_reals(B * Tq * Dv, -1, 1), *y = reals(B * Tq * Dv), *weights = reals(B * Tq * Tk), *dscores = reals(B * Tq * Tk);
            real *dq = reals(B * Tq * D), *dk = reals(B * Tk * D), *dv = reals(B * Tk * Dv), *du = reals(D);
            int64_t lengths[B] = {Tk, Tk / 2};
            if (far) q[0] = 500, k[D - 1] = -500;
            void *work = check_buffer(FSQ_FN(additive_attention_forward_work)(Tq, Tk, D, Dv, check_threads), 1);
            FSQ_FN(additive_attention_forward)(y, weights, q, k, v, u, lengths, NULL, NULL, 0, 0, 0, B, Tq, Tk, D, Dv, check_threads, work);
            work = check_buffer(FSQ_FN(additive_attention_backward_work)(B, Tq, Tk, D, Dv, check_threads), 1);
            FSQ_FN(additive_attention_backward)(dq, dk, dv, du, dscores, weights, q, k, v, u, dy, NULL, lengths, B, Tq, Tk, D, Dv, check_threads, work);
            wide w[64], ds[64], expected[128];
            for (ptrdiff_t b = 0, row = 0; b < B; b++)
                for (ptrdiff_t i = 0; i < Tq; i++, row++) {
                    ptrdiff_t L = (ptrdiff_t)lengths[b];
                    const real *keys = k + b * Tk * D;
                    additive_query(w, expected, ds, q + row * D, keys, v + b * Tk * Dv, u, dy + row * Dv, L, D, Dv);
                    double units = 16 + 2 * (double)D + (double)Dv;
                    for (ptrdiff_t c = 0; c < Dv; c++) CHECK(near(y[row * Dv + c], expected[c], units, units));
                    for (ptrdiff_t j = 0; j < Tk; j++) CHECK(near(dscores[row * Tk + j], j < L ? ds[j] : 0, units, units));
                    for (ptrdiff_t d = 0; d < D; d++) {
                        wide sum = 0;
                        for (ptrdiff_t j = 0; j < L; j++) {
                            wide t = (wide)tanhl((wide)q[row * D + d] + keys[j * D + d]);
                            sum += ds[j] * u[d] * (1 - t * t);
                        }
                        CHECK(near(dq[row * D + d], sum, units, units));
                    }
                }
            check_free_all();
        }
}

void TEST_NAME(test_ops)(void) {
    test_pointwise();
    test_special_values();
    test_bias();
    test_softmax();
    test_softmax_special();
    test_log_softmax();
    test_layer_norm();
    test_linear_cross_entropy();
    test_cross_entropy();
    test_cross_entropy_confident();
    test_embedding();
    test_dropout();
    test_additive_attention();
}
