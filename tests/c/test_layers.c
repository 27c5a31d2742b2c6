/* test_layers.c - products and the LSTM against their definitions in wider arithmetic, and their promises about bits; compiled once
 * for each float type. */
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

/* ---------------------------------------------------------------- matmul */

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

static void test_matmul(void) {
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

/* ---------------------------------------------------------------- lstm */

typedef struct {
    ptrdiff_t T, B, I, H;
    real *x, *h_0, *c_0, *w_ih, *w_hh, *b_ih, *b_hh, *packed;
    real *y, *h_n, *c_n, *gates, *cells;
    wide *exact_y, *exact_c, *exact_gates;                                    /* (T, B, H), (T, B, H), (T, B, 4, H) */
} sequence;

static sequence sequence_new(ptrdiff_t T, ptrdiff_t B, ptrdiff_t I, ptrdiff_t H, int with_state, int with_bias) {
    sequence s = {.T = T, .B = B, .I = I, .H = H};
    s.x = random_reals(T * B * I, 1);
    s.h_0 = with_state ? random_reals(B * H, 1) : NULL;
    s.c_0 = with_state ? random_reals(B * H, 1) : NULL;
    s.w_ih = random_reals(4 * H * I, 0.5);
    s.w_hh = random_reals(4 * H * H, 0.5);
    s.b_ih = with_bias ? random_reals(4 * H, 0.5) : NULL;
    s.b_hh = with_bias ? random_reals(4 * H, 0.5) : NULL;
    s.y = reals(T * B * H), s.h_n = reals(B * H), s.c_n = reals(B * H), s.gates = reals(T * B * 4 * H), s.cells = reals(T * B * H);
    s.exact_y = check_buffer((size_t)(T * B * H) * sizeof(wide), 0);
    s.exact_c = check_buffer((size_t)(T * B * H) * sizeof(wide), 0);
    s.exact_gates = check_buffer((size_t)(T * B * 4 * H) * sizeof(wide), 0);
    s.packed = reals((ptrdiff_t)FSQ_FN(lstm_packed_size)(I, H));
    FSQ_FN(lstm_pack)(s.packed, s.w_ih, s.w_hh, s.b_ih, s.b_hh, I, H, check_threads);
    return s;
}

static void sequence_exact(const sequence *s) {
    ptrdiff_t B = s->B, I = s->I, H = s->H;
    for (ptrdiff_t row = 0; row < s->T * B; row++)                            /* row = t B + b */
        for (ptrdiff_t j = 0; j < H; j++) {
            wide *gate = s->exact_gates + row * 4 * H, before = 0;
            for (ptrdiff_t g = 0; g < 4; g++) {
                ptrdiff_t u = g * H + j;
                wide sum = s->b_ih ? (wide)s->b_ih[u] + s->b_hh[u] : 0;
                for (ptrdiff_t i = 0; i < I; i++) sum += (wide)s->w_ih[u * I + i] * s->x[row * I + i];
                for (ptrdiff_t k = 0; k < H; k++)
                    sum += s->w_hh[u * H + k] * (row >= B ? s->exact_y[(row - B) * H + k] : s->h_0 ? (wide)s->h_0[row * H + k] : 0);
                gate[u] = g == 2 ? tanhl(sum) : sigmoid(sum);
            }
            before = row >= B ? s->exact_c[(row - B) * H + j] : s->c_0 ? (wide)s->c_0[row * H + j] : 0;
            wide c = s->exact_c[row * H + j] = gate[H + j] * before + gate[j] * gate[2 * H + j];
            s->exact_y[row * H + j] = gate[3 * H + j] * tanhl(c);
        }
}

static void sequence_run(const sequence *s, real *y, real *h_n, real *c_n, real *gates, real *cells, int threads) {
    FSQ_FN(lstm_forward)(y, h_n, c_n, gates, cells, s->x, s->h_0, s->c_0, s->packed, s->T, s->B, s->I, s->H, threads,
                         scratch(FSQ_FN(lstm_forward_work)(s->T, s->B, s->I, s->H, threads)));
}

/* Inference, one thread, and step by step give the bits of training on many. */
static void test_lstm_forward(const sequence *s) {
    ptrdiff_t T = s->T, B = s->B, H = s->H, all = T * B * H;
    double bound = 20 * (double)(T + 2) * (4 + sqrt((double)(s->I + H)));
    sequence_run(s, s->y, s->h_n, s->c_n, s->gates, s->cells, check_threads);
    double off = distance(s->y, s->exact_y, all);
    CHECK_WITH(off <= bound, "y: T%td B%td I%td H%td is %g epsilons off", T, B, s->I, H, off);
    CHECK(distance(s->gates, s->exact_gates, 4 * all) <= bound && distance(s->cells, s->exact_c, all) <= bound);
    if (T) CHECK(same_bits(s->h_n, s->y + all - B * H, B * H) && same_bits(s->c_n, s->cells + all - B * H, B * H));
    real *y = reals(all), *h = reals(B * H), *c = reals(B * H);
    sequence_run(s, y, h, c, NULL, NULL, 1);
    CHECK(same_bits(y, s->y, all) && same_bits(h, s->h_n, B * H) && same_bits(c, s->c_n, B * H));
    for (ptrdiff_t i = 0; i < B * H; i++) h[i] = s->h_0 ? s->h_0[i] : 0, c[i] = s->c_0 ? s->c_0[i] : 0;
    void *work = scratch(FSQ_FN(lstm_step_work)(B, s->I, H, check_threads));
    for (ptrdiff_t t = 0; t < T; t++) {
        FSQ_FN(lstm_step)(h, c, s->x + t * B * s->I, s->packed, B, s->I, H, check_threads, work);
        CHECK(same_bits(h, s->y + t * B * H, B * H));
    }
    CHECK(same_bits(c, s->c_n, B * H));
}

typedef struct { wide *dx, *dh, *dc, *dw_ih, *dw_hh, *db; } gradients;

/* Equation by equation, from the last step to the first. dh, dc (B, H) hold dh_n, dc_n and become dh_0, dc_0. */
static void sequence_exact_backward(const sequence *s, const gradients *g, const real *dy) {
    ptrdiff_t B = s->B, I = s->I, H = s->H;
    for (ptrdiff_t row = s->T * B - 1; row >= 0; row--) {
        const wide *gate = s->exact_gates + row * 4 * H;
        ptrdiff_t b = row % B;
        wide dgate[4 * 80];
        for (ptrdiff_t j = 0; j < H; j++) {
            wide i = gate[j], f = gate[H + j], n = gate[2 * H + j], o = gate[3 * H + j], tc = tanhl(s->exact_c[row * H + j]);
            wide before = row >= B ? s->exact_c[(row - B) * H + j] : s->c_0 ? (wide)s->c_0[row * H + j] : 0;
            wide dh = g->dh[b * H + j] + dy[row * H + j], dc = g->dc[b * H + j] + dh * o * (1 - tc * tc);
            dgate[j] = dc * n * i * (1 - i);
            dgate[H + j] = dc * before * f * (1 - f);
            dgate[2 * H + j] = dc * i * (1 - n * n);
            dgate[3 * H + j] = dh * tc * o * (1 - o);
            g->dc[b * H + j] = dc * f;
        }
        for (ptrdiff_t k = 0; k < H; k++) g->dh[b * H + k] = 0;
        for (ptrdiff_t i = 0; i < I; i++) g->dx[row * I + i] = 0;
        for (ptrdiff_t u = 0; u < 4 * H; u++) {
            g->db[u] += dgate[u];
            for (ptrdiff_t i = 0; i < I; i++) {
                g->dx[row * I + i] += dgate[u] * s->w_ih[u * I + i];
                g->dw_ih[u * I + i] += dgate[u] * s->x[row * I + i];
            }
            for (ptrdiff_t k = 0; k < H; k++) {
                g->dh[b * H + k] += dgate[u] * s->w_hh[u * H + k];
                g->dw_hh[u * H + k] += dgate[u] * (row >= B ? s->exact_y[(row - B) * H + k] : s->h_0 ? (wide)s->h_0[row * H + k] : 0);
            }
        }
    }
}

static wide *zeros(ptrdiff_t n) {
    wide *x = check_buffer((size_t)n * sizeof(wide), 0);
    for (ptrdiff_t i = 0; i < n; i++) x[i] = 0;
    return x;
}

static void test_lstm_backward(const sequence *s, int with_last) {
    ptrdiff_t T = s->T, B = s->B, I = s->I, H = s->H, sizes[6] = {T * B * I, B * H, B * H, 4 * H * I, 4 * H * H, 4 * H};
    real *dy = random_reals(T * B * H, 1), *dh_n = with_last ? random_reals(B * H, 1) : NULL, *dc_n = with_last ? random_reals(B * H, 1) : NULL;
    gradients g = {zeros(sizes[0]), zeros(sizes[1]), zeros(sizes[2]), zeros(sizes[3]), zeros(sizes[4]), zeros(sizes[5])};
    for (ptrdiff_t i = 0; with_last && i < B * H; i++) g.dh[i] = dh_n[i], g.dc[i] = dc_n[i];
    sequence_exact_backward(s, &g, dy);
    const wide *exact[6] = {g.dx, g.dh, g.dc, g.dw_ih, g.dw_hh, g.db};
    real *first[6] = {0};
    /* all of it; on one thread; without dx; without the gradients of the weights */
    for (int run = 0; run < 4; run++) {
        int threads = run == 1 ? 1 : check_threads;
        real *d[6];
        for (int a = 0; a < 6; a++) d[a] = (run == 2 && a == 0) || (run == 3 && a > 2) ? NULL : reals(sizes[a]);
        FSQ_FN(lstm_backward)(d[0], d[1], d[2], d[3], d[4], d[5], s->gates, s->cells, s->y, dy, dh_n, dc_n, s->x, s->h_0, s->c_0, s->w_ih, s->w_hh,
                              T, B, I, H, threads, scratch(FSQ_FN(lstm_backward_work)(T, B, I, H, threads)));
        for (int a = 0; a < 6; a++) {
            if (run == 0) {
                first[a] = d[a];
                wide most = 1;
                for (ptrdiff_t i = 0; i < sizes[a]; i++) most = fabsl(exact[a][i]) > most ? fabsl(exact[a][i]) : most;
                double off = distance(d[a], exact[a], sizes[a]) / (double)most;
                CHECK_WITH(off <= 40 * (double)(T + 2) * (4 + sqrt((double)(I + H))), "gradient %d: T%td B%td I%td H%td is %g epsilons off", a, T, B, I, H, off);
            } else if (d[a]) CHECK_WITH(same_bits(d[a], first[a], sizes[a]), "gradient %d differs in run %d", a, run);
        }
    }
}

/* A row alone gives the bits that it gives among others. */
static void test_lstm_rows(const sequence *s) {
    ptrdiff_t T = s->T, I = s->I, H = s->H;
    for (ptrdiff_t b = 0; b < s->B; b++) {
        sequence one = *s;
        one.B = 1;
        one.x = reals(T * I);
        one.h_0 = s->h_0 ? s->h_0 + b * H : NULL;
        one.c_0 = s->c_0 ? s->c_0 + b * H : NULL;
        for (ptrdiff_t t = 0; t < T; t++) memcpy(one.x + t * I, s->x + (t * s->B + b) * I, (size_t)I * sizeof(real));
        real *y = reals(T * H), *h = reals(H), *c = reals(H);
        sequence_run(&one, y, h, c, NULL, NULL, check_threads);
        for (ptrdiff_t t = 0; t < T; t++) CHECK(same_bits(y + t * H, s->y + (t * s->B + b) * H, H));
    }
}

static void test_lstm(void) {
    static const ptrdiff_t sizes[][4] = {{1, 1, 1, 1}, {2, 3, 5, 3}, {7, 1, 3, 15}, {7, 3, 4, 16}, {2, 7, 20, 17}, {7, 13, 2, 35}, {3, 2, 9, 70}, {0, 2, 3, 4}, {2, 0, 3, 4}};
    for (size_t n = 0; n < sizeof sizes / sizeof sizes[0]; n++)
        for (int kind = 0; kind < 4; kind++) {
            sequence s = sequence_new(sizes[n][0], sizes[n][1], sizes[n][2], sizes[n][3], kind & 1, !!(kind & 2));
            sequence_exact(&s);
            test_lstm_forward(&s);
            test_lstm_rows(&s);
            test_lstm_backward(&s, kind & 1);
            check_free_all();
        }
}

void TEST_NAME(test_layers)(void) {
    test_matmul();
    test_lstm();
}
