/* test_conv.c - convolution, max pooling and batch norm of random sizes in buffers of the very size, which a sanitizer watches: values by
 * their equations, and the same bits on any number of threads. Compiled once for each float type. Gradients of every option: from Python. */
#include <float.h>
#include <math.h>
#include <string.h>

#include "check.h"
#include "core/real.h"
#include "fastseq.h"

#if defined FSQ_F32
#define EPSILON FLT_EPSILON
#define TEST_NAME(name) name##_f32
#else
#define EPSILON DBL_EPSILON
#define TEST_NAME(name) name##_f64
#endif

static real *reals(ptrdiff_t n) { return check_buffer((size_t)n * sizeof(real), sizeof(real)); }
static real *random_reals(ptrdiff_t n) {
    real *x = reals(n);
    for (ptrdiff_t i = 0; i < n; i++) x[i] = (real)check_uniform(-1, 1);
    return x;
}
static int same_bits(const real *a, const real *b, ptrdiff_t n) { return n == 0 || memcmp(a, b, (size_t)n * sizeof(real)) == 0; }
static ptrdiff_t pick(ptrdiff_t low, ptrdiff_t high) { return low + (ptrdiff_t)(check_bits() % (uint64_t)(high - low + 1)); }
static int near(real got, double want, double size) { return fabs((double)got - want) <= 64 * EPSILON * (1 + size); }

/* Positions along one axis; 0 where the kernel does not fit. */
static ptrdiff_t positions(ptrdiff_t size, ptrdiff_t kernel, ptrdiff_t stride, ptrdiff_t dilation, ptrdiff_t before, ptrdiff_t after) {
    ptrdiff_t room = before + size + after - dilation * (kernel - 1) - 1;
    return room < 0 ? 0 : room / stride + 1;
}

static fsq_conv_call random_call(int deep) {
    fsq_conv_call c = {.N = pick(0, 5), .groups = pick(1, 3), .C = deep ? pick(170, 200) : pick(1, 4), .O = pick(1, 9), .H = deep ? 1 : pick(1, 9), .W = pick(1, deep ? 40 : 30),
                       .kernel_h = deep ? 1 : pick(1, 3), .kernel_w = pick(1, 4), .stride_h = pick(1, 2), .stride_w = pick(1, 3), .dilation_h = pick(1, 2),
                       .dilation_w = pick(1, 3), .top = pick(0, 2), .left = pick(0, 4)};
    c.out_h = positions(c.H, c.kernel_h, c.stride_h, c.dilation_h, c.top, pick(0, 2));
    c.out_w = positions(c.W, c.kernel_w, c.stride_w, c.dilation_w, c.left, pick(0, 2));
    return c;
}

static double conv_at(const fsq_conv_call *c, const real *x, const real *weight, ptrdiff_t n, ptrdiff_t o, ptrdiff_t p, ptrdiff_t q) {
    double sum = 0;
    for (ptrdiff_t k = 0; k < c->C; k++)
        for (ptrdiff_t i = 0; i < c->kernel_h; i++)
            for (ptrdiff_t j = 0; j < c->kernel_w; j++) {
                ptrdiff_t h = p * c->stride_h - c->top + i * c->dilation_h, w = q * c->stride_w - c->left + j * c->dilation_w;
                if (h < 0 || h >= c->H || w < 0 || w >= c->W) continue;
                sum += (double)weight[((o * c->C + k) * c->kernel_h + i) * c->kernel_w + j] * x[((n * c->groups * c->C + o / c->O * c->C + k) * c->H + h) * c->W + w];
            }
    return sum;
}

/* sum(dy y) = sum(weight dweight) = sum(x dx), for y is linear in both; bias is 0. */
static void check_adjoint(const char *name, const real *a, const real *b, ptrdiff_t n, double want, double size) {
    double sum = 0;
    for (ptrdiff_t i = 0; i < n; i++) sum += (double)a[i] * b[i];
    CHECK_WITH(fabs(sum - want) <= 64 * EPSILON * (1 + size), "%s: %g in place of %g", name, sum, want);
}

static void test_conv(fsq_conv_call c) {
    ptrdiff_t outputs = c.groups * c.O, nx = c.N * c.groups * c.C * c.H * c.W, nw = outputs * c.C * c.kernel_h * c.kernel_w, ny = c.N * outputs * c.out_h * c.out_w;
    real *x = random_reals(nx), *weight = random_reals(nw), *bias = random_reals(outputs), *dy = random_reals(ny), *results[2][5];
    for (int team = 0; team < 2; team++) {
        int threads = team ? check_threads : 1;
        real **r = results[team];
        r[0] = reals(ny), r[1] = reals(nx), r[2] = reals(nw), r[3] = reals(outputs), r[4] = reals(ny);
        void *work = check_buffer(FSQ_FN(conv_work)(&c, threads), 8);
        FSQ_FN(conv_forward)(r[0], x, weight, bias, &c, threads, work);
        FSQ_FN(conv_forward)(r[4], x, weight, NULL, &c, threads, work);
        FSQ_FN(conv_backward)(r[1], r[2], r[3], dy, x, weight, &c, threads, work);
    }
    double dot = 0, size = 0;
    for (ptrdiff_t i = 0; i < ny; i++) {
        ptrdiff_t q = i % c.out_w, p = i / c.out_w % c.out_h, o = i / (c.out_w * c.out_h) % outputs, n = i / (c.out_w * c.out_h * outputs);
        double want = conv_at(&c, x, weight, n, o, p, q);
        CHECK(near(results[0][0][i], want + (double)bias[o], (double)(nw / outputs)));
        dot += want * dy[i], size += fabs(want * dy[i]);
    }
    check_adjoint("weight dweight", weight, results[0][2], nw, dot, size + (double)ny);
    check_adjoint("x dx", x, results[0][1], nx, dot, size + (double)ny);
    for (ptrdiff_t o = 0; o < outputs; o++) {
        double sum = 0;
        for (ptrdiff_t i = 0; i < ny; i++) sum += i / (c.out_w * c.out_h) % outputs == o ? (double)dy[i] : 0;
        CHECK(near(results[0][3][o], sum, (double)ny));
    }
    const ptrdiff_t sizes[5] = {ny, nx, nw, outputs, ny};
    for (int k = 0; k < 5; k++) CHECK_WITH(same_bits(results[0][k], results[1][k], sizes[k]), "bits of result %d", k);
    check_free_all();
}

static void test_max_pool(void) {
    fsq_max_pool_call c = {.H = pick(2, 9), .W = pick(2, 20), .kernel_h = pick(1, 2), .kernel_w = pick(1, 2), .stride_h = pick(1, 3), .stride_w = pick(1, 3),
                           .dilation_h = 1, .dilation_w = 1};
    c.padding_h = pick(0, c.kernel_h / 2), c.padding_w = pick(0, c.kernel_w / 2);
    c.out_h = positions(c.H, c.kernel_h, c.stride_h, 1, c.padding_h, c.padding_h), c.out_w = positions(c.W, c.kernel_w, c.stride_w, 1, c.padding_w, c.padding_w);
    ptrdiff_t planes = pick(0, 7), windows = c.out_h * c.out_w, nx = planes * c.H * c.W;
    real *x = random_reals(nx), *y = reals(planes * windows), *dy = random_reals(planes * windows), *dx = reals(nx);
    int64_t *places = check_buffer((size_t)(planes * windows) * sizeof(int64_t), sizeof(int64_t));
    FSQ_FN(max_pool_forward)(y, places, x, planes, &c, check_threads);
    FSQ_FN(max_pool_backward)(dx, dy, places, planes, &c, check_threads);
    double given = 0, arrived = 0;
    for (ptrdiff_t i = 0; i < planes * windows; i++) {
        ptrdiff_t q = i % c.out_w, p = i / c.out_w % c.out_h, plane = i / windows;
        double want = -INFINITY;
        for (ptrdiff_t h = p * c.stride_h - c.padding_h, a = 0; a < c.kernel_h; a++, h++)
            for (ptrdiff_t w = q * c.stride_w - c.padding_w, b = 0; b < c.kernel_w; b++, w++)
                if (h >= 0 && h < c.H && w >= 0 && w < c.W) want = fmax(want, (double)x[(plane * c.H + h) * c.W + w]);
        CHECK((double)y[i] == want && x[plane * c.H * c.W + places[i]] == y[i]);
        given += (double)dy[i];
    }
    for (ptrdiff_t i = 0; i < nx; i++) arrived += (double)dx[i];
    CHECK(fabs(given - arrived) <= 64 * EPSILON * (double)(1 + planes * windows));
    check_free_all();
}

static void test_batch_norm(void) {
    ptrdiff_t N = pick(2, 9), C = pick(0, 40), L = pick(0, 2) ? 1 : pick(0, 70), n = N * C * L;
    real *x = random_reals(n), *weight = random_reals(C), *bias = random_reals(C), *dy = random_reals(n), *results[2][6];
    for (int team = 0; team < 2; team++) {
        real **r = results[team];
        for (int k = 0; k < 6; k++) r[k] = reals(k == 0 || k == 3 ? n : C);
        FSQ_FN(batch_norm_forward)(r[0], r[1], r[2], x, weight, bias, N, C, L, 0.1, 0, team ? check_threads : 1);
        FSQ_FN(batch_norm_backward)(r[3], r[4], r[5], dy, x, r[1], r[2], weight, N, C, L, 0.1, 0, team ? check_threads : 1);
    }
    for (ptrdiff_t c = 0; c < C && L; c++) {
        double mean = 0, variance = 0, dbias = 0, through = 0;
        for (ptrdiff_t i = 0; i < N * L; i++) mean += (double)x[(i / L * C + c) * L + i % L] / (double)(N * L);
        for (ptrdiff_t i = 0; i < N * L; i++) variance += pow((double)x[(i / L * C + c) * L + i % L] - mean, 2) / (double)(N * L);
        CHECK(near(results[0][1][c], mean, 1) && near(results[0][2][c], variance, 1));
        for (ptrdiff_t i = 0; i < N * L; i++) {
            ptrdiff_t at = (i / L * C + c) * L + i % L;
            CHECK(near(results[0][0][at], ((double)x[at] - mean) / sqrt(variance + 0.1) * weight[c] + bias[c], 4));
            dbias += (double)dy[at], through += (double)results[0][3][at];
        }
        CHECK(near(results[0][5][c], dbias, (double)(N * L)) && near((real)through, 0, (double)(8 * N * L)));   /* a shift of x changes nothing */
    }
    for (int k = 0; k < 6; k++) CHECK_WITH(same_bits(results[0][k], results[1][k], k == 0 || k == 3 ? n : C), "bits of result %d", k);
    check_free_all();
}

void TEST_NAME(test_conv)(void) {
    for (int i = 0; i < 60; i++) {
        test_conv(random_call(i % 12 == 0));
        test_max_pool();
        test_batch_norm();
    }
    test_conv((fsq_conv_call){.N = 2, .groups = 1, .C = 2, .O = 2, .H = 1, .W = 14000, .kernel_h = 1, .kernel_w = 3, .stride_h = 1, .stride_w = 1,
                              .dilation_h = 1, .dilation_w = 1, .left = 2, .out_h = 1, .out_w = 14000});     /* pieces within a sample */
}
