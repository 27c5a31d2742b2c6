/* vmath_exhaustive.c - exp, expm1 below 0, log, tanh, sigmoid, softplus, erf and GELU in float32 on every instruction set of this machine against libm in double, over
 * all 2^32 inputs, or over each `step`-th and all around the powers of two:
 *     vmath_exhaustive [step [threads]]       about 10 minutes with step 1 on 2 threads
 * Fails where an error is above the numbers of csrc/simd/vmath.h, or a NaN, infinity or sign of zero is wrong. The double reference is
 * within 2 of its own ulp, 2^-28 of a float's. */
#define FSQ_F32
#include <math.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "fastseq.h"
#include "kernels/kernels.h"

enum { BLOCK = 1 << 12, FUNCTIONS = 8 };
static const struct { const char *name; fsq_function function; double ulp_fma, ulp; } contract[FUNCTIONS] = {
    {"exp", FSQ_EXP, 2, 2}, {"log", FSQ_LOG, 2, 2}, {"tanh", FSQ_TANH, 3, 4}, {"sigmoid", FSQ_SIGMOID, 3, 4},
    {"erf", FSQ_ERF, 3, 3}, {"gelu", FSQ_GELU, 6, 6}, {"softplus", FSQ_SOFTPLUS, 3, 3}, {"elu", FSQ_ELU, 3, 3}};

typedef struct { double ulp; float at; long wrong; float wrong_at; } worst;
typedef struct { uint64_t first, end, step; worst found[FUNCTIONS][FSQ_ISA_COUNT]; } part;

static double reference(fsq_function f, double x) {
    switch (f) {
        case FSQ_EXP: return exp(x);
        case FSQ_LOG: return log(x);
        case FSQ_TANH: return tanh(x);
        case FSQ_ERF: return erf(x);
        case FSQ_GELU: return x == -INFINITY ? -0.0 : 0.5 * x * erfc(-x * sqrt(0.5));
        case FSQ_SOFTPLUS: return x > 0 ? x + log1p(exp(-x)) : log1p(exp(x));
        case FSQ_ELU: return x < 0 ? expm1(x) : x;
        default: return x < 0 ? exp(x) / (1 + exp(x)) : 1 / (1 + exp(-x));
    }
}

/* Error in units of the last place of the float nearest to r; infinity counts as 2^128, a denormal's place is 2^-149. */
static double ulps(float y, double r) {
    double value = isinf(y) ? copysign(0x1p128, y) : y, exact = fabs(r) > 0x1p128 ? copysign(0x1p128, r) : r;
    uint64_t bits;
    memcpy(&bits, &r, sizeof bits);
    int exponent = (int)(bits >> 52 & 0x7ff) - 1023;
    exponent = exponent < -126 ? -126 : exponent > 127 ? 127 : exponent;
    uint64_t scale = (uint64_t)(1023 + 23 - exponent) << 52;
    double places;
    memcpy(&places, &scale, sizeof places);
    return fabs(value - exact) * places;
}

static void compare(worst *w, const float *x, const float *y, const double *r, int n) {
    for (int i = 0; i < n; i++) {
        int wrong = isnan(r[i]) ? !isnan(y[i]) : isnan(y[i]) || !signbit(y[i]) != !signbit(r[i]) || (isinf(r[i]) && !isinf(y[i]));
        if (wrong && w->wrong++ == 0) w->wrong_at = x[i];
        double error = isnan(r[i]) ? 0 : ulps(y[i], r[i]);
        if (error > w->ulp) w->ulp = error, w->at = x[i];
    }
}

static void block(part *p, const float *x, int n) {
    float y[BLOCK];
    double r[BLOCK];
    for (int f = 0; f < FUNCTIONS; f++) {
        for (int i = 0; i < n; i++) r[i] = reference(contract[f].function, x[i]);
        for (int isa = 0; fsq_isa_available(isa); isa++) {
            fsq_kernels_of_f32[isa]->pointwise_forward[contract[f].function](y, x, n, 1);
            compare(&p->found[f][isa], x, y, r, n);
        }
    }
}

/* bits [first, end) in steps; both ways to call it fill whole blocks. */
static void range(part *p, uint64_t first, uint64_t end, uint64_t step) {
    float x[BLOCK];
    int n = 0;
    for (uint64_t bits = first; bits < end; bits += step) {
        uint32_t low = (uint32_t)bits;
        memcpy(x + n, &low, 4);
        if (++n == BLOCK) block(p, x, n), n = 0;
    }
    if (n) block(p, x, n);
}

static void *run(void *argument) {
    part *p = argument;
    range(p, p->first, p->end, p->step);
    for (uint64_t power = p->first & ~(uint64_t)0x7fffff; p->step > 1 && power < p->end; power += 0x800000)
        range(p, power < 64 ? 0 : power - 64, power + 64, 1);
    return NULL;
}

static int has_fma(int isa) {
#if defined __aarch64__
    return isa >= 0;
#else
    return isa != FSQ_PORTABLE;
#endif
}

static int report(const part *parts, int threads) {
    int failed = 0;
    for (int f = 0; f < FUNCTIONS; f++)
        for (int isa = 0; fsq_isa_available(isa); isa++) {
            worst all = {0, 0, 0, 0};
            for (int t = 0; t < threads; t++) {
                const worst *w = &parts[t].found[f][isa];
                if (w->ulp > all.ulp) all.ulp = w->ulp, all.at = w->at;
                if (w->wrong && !all.wrong) all.wrong_at = w->wrong_at;
                all.wrong += w->wrong;
            }
            double allowed = has_fma(isa) ? contract[f].ulp_fma : contract[f].ulp;
            int bad = all.ulp > allowed || all.wrong;
            failed |= bad;
            printf("%-8s %-9s %.4f ulp at %a (%g), %g allowed%s", contract[f].name, fsq_isa_available(isa), all.ulp, all.at, all.at, allowed, bad ? "  FAILED" : "");
            if (all.wrong) printf(", %ld special values wrong, the first at %a", all.wrong, all.wrong_at);
            printf("\n");
        }
    return failed;
}

int main(int argc, char **argv) {
    uint64_t step = argc > 1 ? strtoull(argv[1], NULL, 10) : 1;
    int threads = argc > 2 ? atoi(argv[2]) : 2;
    if (step < 1 || threads < 1 || threads > 256) return fprintf(stderr, "usage: vmath_exhaustive [step >= 1 [threads 1 to 256]]\n"), 2;
    part *parts = calloc((size_t)threads, sizeof *parts);
    pthread_t *ids = calloc((size_t)threads, sizeof *ids);
    if (!parts || !ids) return 2;
    for (int t = 0; t < threads; t++) {
        parts[t].first = ((uint64_t)t << 32) / (uint64_t)threads;
        parts[t].end = ((uint64_t)(t + 1) << 32) / (uint64_t)threads;
        parts[t].step = step;
        if (pthread_create(&ids[t], NULL, run, &parts[t])) return 2;
    }
    for (int t = 0; t < threads; t++) pthread_join(ids[t], NULL);
    int failed = report(parts, threads);
    free(parts);
    free(ids);
    return failed;
}
