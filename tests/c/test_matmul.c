/* test_matmul.c - products against their definition in wider arithmetic, and their promises about bits; compiled once for each float type. */
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

static real *reals(ptrdiff_t n) { return check_buffer((size_t)n * sizeof(real), sizeof(real)); }
static real *random_reals(ptrdiff_t n, double scale) {
    real *x = reals(n);
    for (ptrdiff_t i = 0; i < n; i++) x[i] = (real)check_uniform(-scale, scale);
    return x;
}
static int same_bits(const real *a, const real *b, ptrdiff_t n) { return n == 0 || memcmp(a, b, (size_t)n * sizeof(real)) == 0; }
static void *scratch(size_t bytes) { return bytes ? check_buffer(bytes, 0) : NULL; }
static wide sigmoid(wide x) { return 1 / (1 + expl(-x)); }

/* Greatest |a - b| of n, in epsilons; infinite where a is not finite. */
static double distance(const real *a, const wide *b, ptrdiff_t n) {
    double most = 0;
    for (ptrdiff_t i = 0; i < n; i++) {
        double d = isfinite(a[i]) ? (double)(fabsl((long double)a[i] - b[i]) / EPSILON) : INFINITY;
        most = d > most ? d : most;
    }
    return most;
}

typedef struct {
    ptrdiff_t M, N, K, batch;
    int a_turned, b_turned, reversed, padded, with_bias, accumulate, packed;
    fsq_function function;
} product;

static wide product_function(wide x, fsq_function f) { return f == FSQ_TANH ? tanhl(x) : f == FSQ_SIGMOID ? sigmoid(x) : f == FSQ_RELU && x < 0 ? 0 : x; }

/* a, b lie row by row or column by column, rows apart by `pad` more than needed, or backwards. */
static void test_product(const product *p) {
    ptrdiff_t M = p->M, N = p->N, K = p->K, pad = p->padded ? 3 : 0;
    ptrdiff_t a_row = p->a_turned ? 1 : K + pad, a_col = p->a_turned ? M + pad : 1, b_row = p->b_turned ? 1 : N + pad, b_col = p->b_turned ? K + pad : 1;
    ptrdiff_t a_size = (M + pad) * (K + pad), b_size = (K + pad) * (N + pad), c_row = N + pad, c_size = M * c_row;
    real *a = random_reals(a_size * p->batch + 1, 1), *b = random_reals(b_size * p->batch + 1, 1), *bias = random_reals(N, 1);
    real *c = random_reals(c_size * p->batch, 1), *alone = reals(c_size * p->batch);
    memcpy(alone, c, (size_t)(c_size * p->batch) * sizeof(real));
    real *before = reals(c_size * p->batch);
    memcpy(before, c, (size_t)(c_size * p->batch) * sizeof(real));
    const real *a0 = a;
    if (p->reversed && M > 0) a0 += (M - 1) * a_row, a_row = -a_row;
    real *panels = NULL;
    if (p->packed) {
        panels = reals((ptrdiff_t)FSQ_FN(matmul_packed_size)(N, K));
        FSQ_FN(matmul_pack)(panels, b, N, K, b_row, b_col, check_threads);
    }
    int run_threads[2] = {check_threads, 1};
    for (int run = 0; run < 2; run++)
        FSQ_FN(matmul)(run ? alone : c, a0, p->packed ? NULL : b, panels, p->with_bias ? bias : NULL, p->batch, M, N, K, c_size, c_row, a_size, a_row,
                       a_col, b_size, b_row, b_col, p->accumulate, p->function, run_threads[run],
                       scratch(FSQ_FN(matmul_work)(M, N, K, p->packed, run_threads[run])));
    CHECK(same_bits(c, alone, c_size * p->batch));
    double worst = 0;
    for (ptrdiff_t e = 0; e < p->batch; e++)
        for (ptrdiff_t m = 0; m < M; m++) {
            for (ptrdiff_t n = 0; n < N; n++) {
                wide sum = p->accumulate ? before[e * c_size + m * c_row + n] : p->with_bias ? bias[n] : 0;
                for (ptrdiff_t k = 0; k < K; k++) sum += (wide)a0[e * a_size + m * a_row + k * a_col] * b[e * b_size + k * b_row + n * b_col];
                double off = distance(c + e * c_size + m * c_row + n, &(wide){product_function(sum, p->function)}, 1);
                worst = off > worst ? off : worst;
            }
            CHECK(same_bits(c + e * c_size + m * c_row + N, before + e * c_size + m * c_row + N, pad));   /* between rows: untouched */
        }
    CHECK_WITH(worst <= 4 + (double)K, "%td x %td x %td is %g epsilons off", M, N, K, worst);
    check_free_all();
}

void TEST_NAME(test_matmul)(void) {
    static const ptrdiff_t sizes[][3] = {{0, 3, 2}, {3, 0, 2}, {2, 3, 0}, {1, 1, 1}, {1, 130, 17}, {2, 65, 33}, {3, 16, 5}, {5, 7, 9},
                                         {6, 64, 8}, {7, 63, 65}, {13, 129, 20}, {50, 33, 7}, {25, 70, 300}};
    for (size_t s = 0; s < sizeof sizes / sizeof sizes[0]; s++)
        for (int kind = 0; kind < 16; kind++) {
            product p = {sizes[s][0], sizes[s][1], sizes[s][2], 1, kind & 1, !!(kind & 2), !!(kind & 4), !!(kind & 8), 0, 0, 0, FSQ_IDENTITY};
            test_product(&p);
            p.accumulate = 1;
            test_product(&p);
            p.accumulate = 0, p.packed = 1, p.with_bias = 1, p.function = kind % 3 == 0 ? FSQ_TANH : kind % 3 == 1 ? FSQ_SIGMOID : FSQ_RELU;
            test_product(&p);
            p.packed = 0, p.batch = 3;
            test_product(&p);
        }
}
