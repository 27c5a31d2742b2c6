/* test_attention.c - attention of every option against its definition in wider arithmetic, and its promises about bits, in buffers of the
 * very size, which a sanitizer watches. Compiled once for each float type. Gradients are tested from Python. */
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

enum { CAUSAL = 1, WINDOW = 2, LENGTHS = 4, MASK = 8, ADDITIVE = 16, BY_KEY = 32, WEIGHTS = 64, DROPOUT = 128, TURNED = 256, KINDS = 512 };

static real *reals(ptrdiff_t n) { return check_buffer((size_t)n * sizeof(real), sizeof(real)); }
static real *random_reals(ptrdiff_t n) {
    real *x = reals(n);
    for (ptrdiff_t i = 0; i < n; i++) x[i] = (real)check_uniform(-1, 1);
    return x;
}

/* (B, heads, T, D) in that order, or with the heads inside. */
static fsq_attention_array array_of(real *data, ptrdiff_t heads, ptrdiff_t T, ptrdiff_t D, int turned) {
    fsq_attention_array a = {data, heads * T * D, turned ? D : T * D, turned ? heads * D : D};
    return a;
}
static const real *at(const fsq_attention_array *a, ptrdiff_t b, ptrdiff_t h, ptrdiff_t t) {
    return (const real *)a->data + b * a->batch + h * a->head + t * a->row;
}

static int sees(const fsq_attention_call *c, ptrdiff_t b, ptrdiff_t h, ptrdiff_t i, ptrdiff_t j, wide *add) {
    ptrdiff_t position = i + c->offset, where = b * c->mask_batch + h * c->mask_head + i * c->mask_query + j * c->mask_key;
    *add = 0;
    if ((c->causal && j > position) || (c->window && (j - position >= c->window || position - j >= c->window))) return 0;
    if (c->key_lengths && j >= c->key_lengths[b]) return 0;
    if (!c->mask) return 1;
    if (c->mask_is_bool) return ((const unsigned char *)c->mask)[where];
    *add = ((const real *)c->mask)[where];
    return *add != -INFINITY;
}

/* One query by the definition; returns how far y is off, in epsilons. */
static double distance(const fsq_attention_call *c, const fsq_attention_array arrays[4], ptrdiff_t b, ptrdiff_t h, ptrdiff_t i) {
    ptrdiff_t kv = h / (c->heads / c->kv_heads);
    const real *y = at(&arrays[3], b, h, i), *q = at(&arrays[0], b, h, i);
    wide sums[64] = {0}, total = 0, add;
    for (ptrdiff_t j = 0; j < c->Tk; j++) {
        if (!sees(c, b, h, i, j, &add)) continue;
        wide s = add, e;
        for (ptrdiff_t d = 0; d < c->D; d++) s += (wide)(real)c->scale * q[d] * at(&arrays[1], b, kv, j)[d];
        total += e = expl(s);
        for (ptrdiff_t d = 0; d < c->Dv; d++) sums[d] += e * at(&arrays[2], b, kv, j)[d];
    }
    double worst = 0;
    for (ptrdiff_t d = 0; d < c->Dv; d++) {
        double off = isfinite(y[d]) ? (double)(fabsl((long double)y[d] - (total > 0 ? sums[d] / total : 0)) / EPSILON) : INFINITY;
        worst = off > worst ? off : worst;
    }
    return worst;
}

static fsq_attention_call make_call(const ptrdiff_t sizes[7], int kind) {
    fsq_attention_call c = {sizes[0], sizes[1], sizes[2], sizes[3], sizes[4], sizes[5], sizes[6], .scale = 0.4, .key = 77};
    c.causal = kind & CAUSAL, c.window = kind & WINDOW ? 9 : 0, c.dropout = kind & DROPOUT ? 0.3 : 0;
    c.offset = kind & (CAUSAL | WINDOW) ? c.Tk - c.Tq - 1 : 0;
    if (kind & LENGTHS) {
        int64_t *lengths = check_buffer((size_t)c.B * sizeof(int64_t), 0);
        for (ptrdiff_t b = 0; b < c.B; b++) lengths[b] = (int64_t)(check_bits() % (uint64_t)(c.Tk + 1));
        c.key_lengths = lengths;
    }
    if (kind & MASK) {
        ptrdiff_t rows = kind & BY_KEY ? 1 : c.Tq, n = c.B * rows * c.Tk;
        unsigned char *bytes = check_buffer((size_t)n, 0);
        real *numbers = random_reals(n);
        for (ptrdiff_t i = 0; i < n; i++) {
            bytes[i] = check_uniform(0, 1) < 0.6;
            if (!bytes[i]) numbers[i] = -(real)INFINITY;
        }
        c.mask = kind & ADDITIVE ? (void *)numbers : bytes, c.mask_is_bool = !(kind & ADDITIVE);
        c.mask_batch = rows * c.Tk, c.mask_query = kind & BY_KEY ? 0 : c.Tk, c.mask_key = 1;
    }
    return c;
}

static void test_problem(const ptrdiff_t sizes[7], int kind) {
    fsq_attention_call c = make_call(sizes, kind);
    int turned = !!(kind & TURNED), runs[2] = {check_threads, 1};
    ptrdiff_t nq = c.B * c.heads * c.Tq * c.D, nk = c.B * c.kv_heads * c.Tk * c.D, nv = c.B * c.kv_heads * c.Tk * c.Dv, ny = c.B * c.heads * c.Tq * c.Dv;
    ptrdiff_t pairs = c.B * c.heads * c.Tq * c.Tk;
    fsq_attention_array q = array_of(random_reals(nq), c.heads, c.Tq, c.D, turned), k = array_of(random_reals(nk), c.kv_heads, c.Tk, c.D, turned);
    fsq_attention_array v = array_of(random_reals(nv), c.kv_heads, c.Tk, c.Dv, turned), dy = array_of(random_reals(ny), c.heads, c.Tq, c.Dv, turned);
    real *dweights = random_reals(pairs), *out[2][8];
    const ptrdiff_t counts[8] = {ny, c.B * c.heads * c.Tq, pairs, nq, nk, nv, pairs, 0};
    for (int r = 0; r < 2; r++) {
        for (int n = 0; n < 7; n++) out[r][n] = reals(counts[n]);
        real *weights = kind & WEIGHTS ? out[r][2] : NULL, *lse = out[r][1];
        fsq_attention_array y = array_of(out[r][0], c.heads, c.Tq, c.Dv, turned), dq = array_of(out[r][3], c.heads, c.Tq, c.D, turned);
        fsq_attention_array dk = array_of(out[r][4], c.kv_heads, c.Tk, c.D, turned), dv = array_of(out[r][5], c.kv_heads, c.Tk, c.Dv, turned);
        FSQ_FN(attention_forward)(&y, lse, weights, &q, &k, &v, &c, runs[r], check_buffer(FSQ_FN(attention_forward_work)(&c, runs[r]), 8));
        FSQ_FN(attention_backward)(&dq, &dk, &dv, weights ? out[r][6] : NULL, &q, &k, &v, &y, lse, &dy, weights, weights ? dweights : NULL, &c, runs[r],
                                   check_buffer(FSQ_FN(attention_backward_work)(&c, runs[r]), 8));
    }
    for (int n = 0; n < 7; n++)
        if ((kind & WEIGHTS || (n != 2 && n != 6)) && counts[n]) CHECK(!memcmp(out[0][n], out[1][n], (size_t)counts[n] * sizeof(real)));
    fsq_attention_array arrays[4] = {q, k, v, array_of(out[0][0], c.heads, c.Tq, c.Dv, turned)};
    for (ptrdiff_t row = 0; !(kind & DROPOUT) && row < c.B * c.heads * c.Tq; row++) {
        double off = distance(&c, arrays, row / c.Tq / c.heads, row / c.Tq % c.heads, row % c.Tq);
        CHECK_WITH(off <= 32 + (double)(c.Tk + c.D), "kind %d, row %td of %td x %td is %g epsilons off", kind, row, c.Tq, c.Tk, off);
    }
    check_free_all();
}

void TEST_NAME(test_attention)(void) {
    static const ptrdiff_t sizes[][7] = {{1, 1, 1, 1, 1, 1, 1}, {2, 3, 3, 1, 70, 17, 5}, {1, 4, 2, 1, 1030, 16, 16}, {2, 2, 1, 5, 3, 8, 33}, {1, 1, 1, 66, 130, 7, 16},
                                         {1, 3, 1, 130, 65, 16, 3}, {2, 2, 2, 17, 64, 0, 4}, {1, 2, 2, 3, 9, 4, 0}, {1, 1, 1, 3, 0, 4, 4}, {0, 2, 2, 3, 4, 4, 4}};
    for (size_t s = 0; s < sizeof sizes / sizeof sizes[0]; s++)
        for (int kind = 0; kind < KINDS; kind++) {
            if ((!(kind & MASK) && kind & (ADDITIVE | BY_KEY)) || (s + (size_t)kind / 2) % 5) continue;     /* a fifth of them for each size */
            check_seed((uint64_t)(s * KINDS + (size_t)kind));
            test_problem(sizes[s], kind);
        }
}
