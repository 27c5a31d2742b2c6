/* test_optim.c - the optimisers' updates against their equations in wider arithmetic, of whole arrays and of rows of a table, and the norm of
 * gradients; compiled once for each float type. */
#include <float.h>
#include <math.h>
#include <string.h>

#include "check.h"
#include "core/real.h"
#include "fastseq.h"

#if defined FSQ_F32
typedef double wide;
#define EPSILON FLT_EPSILON
#define TEST_NAME(name) name##_f32
#else
typedef long double wide;
#define EPSILON DBL_EPSILON
#define TEST_NAME(name) name##_f64
#endif

/* Whether y is `expected` up to `units` of the float type's epsilon, relative, and `absolute` times it. */
static int near(real y, wide expected, double units, double absolute) {
    return fabsl((long double)y - expected) <= EPSILON * (units * fabsl((long double)expected) + absolute);
}

static real *random_reals(ptrdiff_t n, double low, double high) {
    real *x = check_buffer((size_t)n * sizeof(real), sizeof(real));
    for (ptrdiff_t i = 0; i < n; i++) x[i] = (real)check_uniform(low, high);
    return x;
}

static real *copy_of(const real *x, ptrdiff_t n) {
    real *y = check_buffer((size_t)n * sizeof(real), sizeof(real));
    if (n) memcpy(y, x, (size_t)n * sizeof(real));
    return y;
}

static const ptrdiff_t lengths[] = {0, 1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 33, 63, 64, 65, 100, 1023, 2500};
enum { lengths_count = sizeof lengths / sizeof lengths[0] };

static void test_norm(void) {
    static const ptrdiff_t sizes[] = {0, 1, 15, 16, 17, 4095, 4097, 20000};
    for (int s = 0; s < 8; s++) {
        ptrdiff_t n = sizes[s];
        real *x = random_reals(n, -1, 1), *y = copy_of(x, n);
        long double sum = 0;
        for (ptrdiff_t i = 0; i < n; i++) sum += (long double)x[i] * x[i];
        double found = FSQ_FN(sum_squares)(x, n, check_threads);
        CHECK(fabsl(found - sum) <= (4 + (double)n / 16) * DBL_EPSILON * sum);   /* sixteen chains of additions */
        CHECK(found == FSQ_FN(sum_squares)(x, n, 1));
        FSQ_FN(scale)(y, n, 0.37, check_threads);
        for (ptrdiff_t i = 0; i < n; i++) CHECK(y[i] == x[i] * (real)0.37);
        check_free_all();
    }
}

/* A table, its state and a gradient: of every element (rows NULL, V = 1), or of the rows 1, 3, 5, ... only. `a` is never negative. */
typedef struct {
    ptrdiff_t V, D, n;
    int64_t *rows;
    real *w, *a, *b, *c, *grad, *w0, *a0, *b0, *c0;
} table;

static table make_table(ptrdiff_t D, int by_rows) {
    table t = {.V = by_rows ? 7 : 1, .D = D, .n = by_rows ? 3 * D : D};
    if (by_rows) {
        t.rows = check_buffer(3 * sizeof(int64_t), sizeof(int64_t));
        for (int i = 0; i < 3; i++) t.rows[i] = 2 * i + 1;
    }
    t.w = random_reals(t.V * D, -1, 1), t.a = random_reals(t.V * D, 0, 1), t.b = random_reals(t.V * D, -1, 1), t.c = random_reals(t.V * D, -0.1, 0.1);
    t.w0 = copy_of(t.w, t.V * D), t.a0 = copy_of(t.a, t.V * D), t.b0 = copy_of(t.b, t.V * D), t.c0 = copy_of(t.c, t.V * D);
    t.grad = random_reals(t.n, -1, 1);
    return t;
}

/* The place in the gradient of element i, or -1 where it has none and so must not have changed. */
static ptrdiff_t gradient_of(const table *t, ptrdiff_t i) {
    if (!t->rows) return i;
    if (i / t->D % 2) return i / t->D / 2 * t->D + i % t->D;
    CHECK(t->w[i] == t->w0[i] && t->a[i] == t->a0[i] && t->b[i] == t->b0[i] && t->c[i] == t->c0[i]);
    return -1;
}

static void test_sgd(void) {
    for (int kind = 0; kind < 32; kind++)
        for (int l = 0; l < lengths_count; l++) {
            table t = make_table(lengths[l], kind & 16);
            double momentum = kind & 1 ? 0.9 : 0, decay = kind & 8 ? 0.05 : 0;
            int nesterov = !!(kind & 2), first = !!(kind & 4);
            FSQ_FN(sgd)(t.w, kind & 1 ? t.b : NULL, t.grad, t.rows, t.n, t.D, 0.1, momentum, nesterov, first, decay, check_threads);
            for (ptrdiff_t i = 0, at; i < t.V * t.D; i++) {
                if ((at = gradient_of(&t, i)) < 0) continue;
                wide g = t.grad[at] + decay * (wide)t.w0[i], v = first ? g : momentum * t.b0[i] + g;
                wide step = !(kind & 1) ? g : nesterov ? g + momentum * v : v;
                CHECK(near(t.w[i], t.w0[i] - 0.1 * step, 2, 2));
                CHECK(kind & 1 ? near(t.b[i], v, 2, 2) : t.b[i] == t.b0[i]);
            }
            check_free_all();
        }
}

static void test_adagrad(void) {
    for (int kind = 0; kind < 4; kind++)
        for (int l = 0; l < lengths_count; l++) {
            table t = make_table(lengths[l], kind & 1);
            double decay = kind & 2 ? 0.05 : 0;
            FSQ_FN(adagrad)(t.w, t.a, t.grad, t.rows, t.n, t.D, 0.1, 1e-3, decay, check_threads);
            for (ptrdiff_t i = 0, at; i < t.V * t.D; i++) {
                if ((at = gradient_of(&t, i)) < 0) continue;
                wide g = t.grad[at] + decay * (wide)t.w0[i], sum = t.a0[i] + g * g;
                CHECK(near(t.a[i], sum, 4, 4));
                CHECK(near(t.w[i], t.w0[i] - 0.1 * g / (sqrtl(sum) + 1e-3), 4, 4));
            }
            check_free_all();
        }
}

static void test_rmsprop(void) {
    for (int kind = 0; kind < 8; kind++)
        for (int l = 0; l < lengths_count; l++) {
            table t = make_table(lengths[l], 0);
            double momentum = kind & 1 ? 0.9 : 0, decay = kind & 4 ? 0.05 : 0, alpha = 0.95;
            int centred = !!(kind & 2);
            for (ptrdiff_t i = 0; i < t.D; i++) t.a[i] = t.a0[i] = t.a0[i] + (real)0.1;      /* a square is at least the mean's square */
            FSQ_FN(rmsprop)(t.w, t.a, kind & 1 ? t.b : NULL, centred ? t.c : NULL, t.grad, t.n, 0.1, alpha, 1e-3, momentum, decay, check_threads);
            for (ptrdiff_t i = 0; i < t.D; i++) {
                wide g = t.grad[i] + decay * (wide)t.w0[i], square = alpha * t.a0[i] + (1 - alpha) * g * g, mean = alpha * t.c0[i] + (1 - alpha) * g;
                wide spread = centred ? square - mean * mean : square, step = g / (sqrtl(spread) + 1e-3), v = momentum * t.b0[i] + step;
                double size = 16 * fabs((double)step);
                CHECK(near(t.a[i], square, 4, 4) && (centred ? near(t.c[i], mean, 4, 4) : t.c[i] == t.c0[i]));
                CHECK(kind & 1 ? near(t.b[i], v, 4, 4 + size) : t.b[i] == t.b0[i]);
                CHECK(near(t.w[i], t.w0[i] - 0.1 * (kind & 1 ? v : step), 4, 4 + size));
            }
            check_free_all();
        }
}

static void test_adam(void) {
    static const int64_t steps[] = {1, 2, 1000};
    for (int kind = 0; kind < 12; kind++)
        for (int l = 0; l < lengths_count; l++) {
            table t = make_table(lengths[l], kind >= 6);
            int64_t step = steps[kind % 3];
            int decoupled = kind / 3 % 2;
            FSQ_FN(adam)(t.w, t.b, t.a, t.grad, t.rows, t.n, t.D, 1e-3, 0.9, 0.999, 1e-8, 0.01, decoupled, step, check_threads);
            for (ptrdiff_t i = 0, at; i < t.V * t.D; i++) {
                if ((at = gradient_of(&t, i)) < 0) continue;
                wide g = t.grad[at] + (decoupled ? 0 : 0.01 * (wide)t.w0[i]);
                wide m = 0.9 * (wide)t.b0[i] + (1 - 0.9) * g, v = 0.999 * (wide)t.a0[i] + (1 - 0.999) * g * g;
                wide root = sqrtl(v / (1 - powl(0.999, step))) + 1e-8, keep = decoupled ? 1 - 1e-3 * 0.01 : 1;
                wide expected = keep * t.w0[i] - 1e-3 / (1 - powl(0.9, step)) * m / root;
                CHECK(near(t.b[i], m, 2, 2) && near(t.a[i], v, 4, 2));
                CHECK(near(t.w[i], expected, 4, 8 + 0.1 / (double)root));
            }
            check_free_all();
        }
}

void TEST_NAME(test_optim)(void) {
    test_norm();
    test_sgd();
    test_adagrad();
    test_rmsprop();
    test_adam();
}
