/* additive_attention.c - threads and blocks over kernels/additive_attention.c, and the products with values.
 *
 * Forward: a worker takes one row of the batch, or a block of its queries: panels of exponentials, scores, softmax, the product with v.
 * Backward, in three phases with a barrier between them: gradients of the scores, by blocks of queries, and of v, by blocks of keys; then
 * those of q, k and u for a range of units, over all queries and keys of one row of the batch, u's into a line for each; then the sum of
 * these lines. So each element is one chain in an order that the shapes alone fix. Blocks are cut only where the batch has few rows. */
#include "../core/threads.h"
#include "../kernels/kernels.h"

#include <float.h>
#include <math.h>
#include <string.h>

#if defined FSQ_F32
#define ADDITIVE_FINITE FLT_MAX
#else
#define ADDITIVE_FINITE DBL_MAX
#endif

enum { additive_block = 64 };                               /* queries of one block: their scores and exponentials stay in L2 */

typedef struct {
    real *y, *weights;                                      /* forward */
    real *dq, *dk, *dv, *du, *dscores, *lines;              /* backward; lines: a du (D) for each row of the batch */
    const real *q, *k, *v, *u, *dy, *dweights;
    const int64_t *lengths;
    const unsigned char *visible;
    const real *bias;
    ptrdiff_t mask_batch, mask_query, mask_key, B, Tq, Tk, D, Dv;
    char *work;                                             /* of each worker, `own` bytes each */
    size_t own;
} additive_call;

/* A worker's scratch. */
typedef struct {
    real *q, *k, *u, *scores, *column, *panel;              /* panels of q and k; u padded; (Tq, Tk); Tk vectors; a panel of a product */
    unsigned char *far_q, *far_k, *wild_v;                  /* flags of rows; v: not finite */
} additive_scratch;

static ptrdiff_t additive_min(ptrdiff_t a, ptrdiff_t b) { return a < b ? a : b; }
static ptrdiff_t additive_max(ptrdiff_t a, ptrdiff_t b) { return a > b ? a : b; }
static ptrdiff_t additive_up(ptrdiff_t n, ptrdiff_t to) { return (n + to - 1) / to * to; }
static ptrdiff_t additive_keys(const additive_call *c, ptrdiff_t b) { return c->lengths ? (ptrdiff_t)c->lengths[b] : c->Tk; }

/* A panel's stride: odd, so that the lines of one row do not all fall into the same few sets of the L1 cache. */
static ptrdiff_t additive_stride(ptrdiff_t rows) { return rows | 1; }

/* Lays the scratch for `rows` queries out from `at` on; returns its bytes. NULL: those alone. */
static size_t additive_lay_out(additive_scratch *s, char *at, ptrdiff_t rows, ptrdiff_t Tq, ptrdiff_t Tk, ptrdiff_t D, ptrdiff_t Dv) {
    const FSQ_FN(kernels) *k = FSQ_FN(kernels_now)();
    ptrdiff_t units = additive_up(D, k->lanes), longest = additive_max(additive_max(Tq, Tk), Dv);
    ptrdiff_t sizes[6] = {units * additive_stride(rows), units * additive_stride(Tk), units, rows * Tk, Tk * k->lanes, longest * k->gemm_cols};
    real **reals[6] = {&s->q, &s->k, &s->u, &s->scores, &s->column, &s->panel};
    size_t bytes = 0;
    for (int i = 0; i < 6; i++) {
        if (at) *reals[i] = (real *)(at + bytes);
        bytes += (size_t)additive_up(sizes[i] * (ptrdiff_t)sizeof(real), 64);
    }
    if (at) {
        s->far_q = (unsigned char *)at + bytes;
        s->far_k = s->far_q + rows;
        s->wild_v = s->far_k + Tk;
    }
    return bytes + (size_t)additive_up(rows + 2 * Tk, 64);
}

static additive_scratch additive_mine(const fsq_team *team, const additive_call *c, ptrdiff_t rows) {
    additive_scratch s;
    char *first = (char *)(((uintptr_t)c->work + 63) & ~(uintptr_t)63);
    additive_lay_out(&s, first + (size_t)team->rank * c->own, rows, c->Tq, c->Tk, c->D, c->Dv);
    return s;
}

/* In how many parts, at most `most`, each row of the batch is cut so that every worker has some. */
static ptrdiff_t additive_parts(const fsq_team *team, ptrdiff_t B, ptrdiff_t most) {
    ptrdiff_t parts = team->size == 1 || B == 0 || B >= 2 * team->size ? 1 : (2 * team->size + B - 1) / B;
    return additive_max(additive_min(parts, most), 1);
}

/* The blocks of queries of each row of the batch. */
static ptrdiff_t additive_blocks(const fsq_team *team, const additive_call *c) {
    return additive_max(additive_parts(team, c->B, c->Tq), (c->Tq + additive_block - 1) / additive_block);
}

/* c (M, N) = or += a (M, K) b (K, N); rows of b contiguous. K at most the longest of Tq, Tk and Dv. */
static void additive_product(real *c, ptrdiff_t c_row, const real *a, ptrdiff_t a_row, ptrdiff_t a_k, const real *b, ptrdiff_t M, ptrdiff_t N,
                             ptrdiff_t K, int add, real *panel) {
    const FSQ_FN(kernels) *k = FSQ_FN(kernels_now)();
    ptrdiff_t whole = N - N % k->lanes, left = N - whole;
    if (M == 1) {
        k->gemm_row(c, a, a_k, b, N, N, K, add, NULL, FSQ_IDENTITY);
        return;
    }
    if (whole) k->gemm_block(c, c_row, a, a_row, a_k, 0, b, N, k->gemm_cols, M, whole, K, add, NULL, FSQ_IDENTITY);
    if (left) {
        k->gemm_pack_b(panel, b + whole, N, 1, left, K);
        k->gemm_block(c + whole, c_row, a, a_row, a_k, 0, panel, k->gemm_cols, k->gemm_cols * K, M, left, K, add, NULL, FSQ_IDENTITY);
    }
}

/* c (M, N) = a (M, K) b^T, b (N, K). */
static void additive_product_turned(real *c, ptrdiff_t c_row, const real *a, const real *b, ptrdiff_t M, ptrdiff_t N, ptrdiff_t K, real *panel) {
    const FSQ_FN(kernels) *k = FSQ_FN(kernels_now)();
    if (M <= k->gemm_turned_rows) {
        k->gemm_turned(c, c_row, a, K, 1, b, K, M, N, K, 0, NULL, FSQ_IDENTITY);
        return;
    }
    for (ptrdiff_t j = 0; j < N; j += k->gemm_cols) {
        ptrdiff_t n = additive_min(N - j, k->gemm_cols);
        k->gemm_pack_b(panel, b + j * K, 1, K, n, K);
        k->gemm_block(c + j, c_row, a, K, 1, 0, panel, k->gemm_cols, k->gemm_cols * K, M, n, K, 0, NULL, FSQ_IDENTITY);
    }
}

/* u and the panels of `rows` queries and L keys, with the flags of those that are far: all of them where u is not finite. Returns whether there are any. */
static int additive_prepare(const additive_call *c, const additive_scratch *s, const real *q, ptrdiff_t rows, const real *keys, ptrdiff_t L) {
    const FSQ_FN(kernels) *k = FSQ_FN(kernels_now)();
    unsigned char wild_u;
    ptrdiff_t units = additive_up(c->D, k->lanes);
    k->additive_beyond(&wild_u, c->u, 1, c->D, ADDITIVE_FINITE);
    memset(s->u, 0, (size_t)units * sizeof(real));
    if (wild_u) {
        memset(s->far_q, 1, (size_t)rows);
        memset(s->far_k, 1, (size_t)L);
    } else {
        memcpy(s->u, c->u, (size_t)c->D * sizeof(real));
        k->additive_beyond(s->far_q, q, rows, c->D, k->additive_range);
        k->additive_beyond(s->far_k, keys, L, c->D, k->additive_range);
    }
    k->additive_panel(s->q, additive_stride(rows), q, s->far_q, rows, c->D);
    k->additive_panel(s->k, additive_stride(L), keys, s->far_k, L, c->D);
    return memchr(s->far_q, 1, (size_t)rows) || memchr(s->far_k, 1, (size_t)L);
}

/* ---------------------------------------------------------------- forward */

static int additive_sees(const additive_call *c, ptrdiff_t b, ptrdiff_t i, ptrdiff_t j) {
    ptrdiff_t at = b * c->mask_batch + i * c->mask_query + j * c->mask_key;
    return !(c->visible && !c->visible[at]) && !(c->bias && c->bias[at] == -(real)INFINITY);
}

/* Scores of queries i0 to i1 and the L keys of row b of the batch. */
static void additive_scores_of(const additive_call *c, const additive_scratch *s, real *scores, ptrdiff_t b, ptrdiff_t i0, ptrdiff_t i1, ptrdiff_t L) {
    const FSQ_FN(kernels) *k = FSQ_FN(kernels_now)();
    const real *q = c->q + (b * c->Tq + i0) * c->D, *keys = c->k + b * c->Tk * c->D;
    if (c->Tq == 1) {
        k->additive_scores_far(scores, q, keys, c->u, L, c->D);
        return;
    }
    int any_far = additive_prepare(c, s, q, i1 - i0, keys, L);
    k->additive_scores(scores, c->Tk, s->q, additive_stride(i1 - i0), s->k, additive_stride(L), s->u, i1 - i0, L, c->D);
    if (!any_far) return;
    for (ptrdiff_t i = 0; i < i1 - i0; i++)
        for (ptrdiff_t j = 0; j < L; j++)
            if (s->far_q[i] || s->far_k[j]) k->additive_scores_far(scores + i * c->Tk + j, q + i * c->D, keys + j * c->D, c->u, 1, c->D);
}

/* y (rows i0 to i1) = w v. With a mask, values that are not finite reach only the queries that see them: the others would get 0 times NaN. */
static void additive_values(const additive_call *c, const additive_scratch *s, const real *w, ptrdiff_t b, ptrdiff_t i0, ptrdiff_t i1, ptrdiff_t L) {
    const real *v = c->v + b * c->Tk * c->Dv;
    real *y = c->y + (b * c->Tq + i0) * c->Dv;
    int masked = c->visible || c->bias;
    if (masked) FSQ_FN(kernels_now)()->additive_beyond(s->wild_v, v, L, c->Dv, ADDITIVE_FINITE);
    if (!masked || !memchr(s->wild_v, 1, (size_t)L)) {
        additive_product(y, c->Dv, w, c->Tk, 1, v, i1 - i0, c->Dv, L, 0, s->panel);
        return;
    }
    memset(y, 0, (size_t)((i1 - i0) * c->Dv) * sizeof(real));
    for (ptrdiff_t j = 0, next; j < L; j = next) {          /* runs of finite values, and each other one by itself */
        for (next = j; next < L && !s->wild_v[next]; next++) {}
        if (next > j) additive_product(y, c->Dv, w + j, c->Tk, 1, v + j * c->Dv, i1 - i0, c->Dv, next - j, 1, s->panel);
        if (next == L) break;
        for (ptrdiff_t i = i0; i < i1; i++)
            if (additive_sees(c, b, i, next))
                additive_product(y + (i - i0) * c->Dv, c->Dv, w + (i - i0) * c->Tk + next, c->Tk, 1, v + next * c->Dv, 1, c->Dv, 1, 1, s->panel);
        next++;
    }
}

static void additive_forward_block(const additive_call *c, const additive_scratch *s, ptrdiff_t b, ptrdiff_t i0, ptrdiff_t i1) {
    const FSQ_FN(kernels) *k = FSQ_FN(kernels_now)();
    ptrdiff_t L = additive_keys(c, b);
    real *w = c->weights ? c->weights + (b * c->Tq + i0) * c->Tk : s->scores;
    if (L == 0) {
        memset(c->y + (b * c->Tq + i0) * c->Dv, 0, (size_t)((i1 - i0) * c->Dv) * sizeof(real));
        if (c->weights) memset(w, 0, (size_t)((i1 - i0) * c->Tk) * sizeof(real));
        return;
    }
    additive_scores_of(c, s, w, b, i0, i1, L);
    for (ptrdiff_t i = i0; i < i1; i++) {
        ptrdiff_t at = b * c->mask_batch + i * c->mask_query;
        k->additive_weights(w + (i - i0) * c->Tk, c->visible ? c->visible + at : NULL, c->bias ? c->bias + at : NULL, c->mask_key, L, c->Tk);
    }
    additive_values(c, s, w, b, i0, i1, L);
}

static void additive_forward_part(const fsq_team *team, void *context) {
    const additive_call *c = context;
    ptrdiff_t blocks = additive_blocks(team, c), rows = (c->Tq + blocks - 1) / blocks;
    additive_scratch s = additive_mine(team, c, additive_min(c->Tq, additive_block));
    for (ptrdiff_t task = team->rank; task < c->B * blocks; task += team->size) {
        ptrdiff_t i0 = task % blocks * rows, i1 = additive_min(i0 + rows, c->Tq);
        if (i0 < i1) additive_forward_block(c, &s, task / blocks, i0, i1);
    }
}

/* A pair of a query and a key costs about `one` ns a vector of units where it is the query's only one, else `many`. */
static double additive_nanoseconds(const additive_call *c, double one, double many) {
    const FSQ_FN(kernels) *k = FSQ_FN(kernels_now)();
    double pairs = (double)c->B * (double)c->Tq * (double)c->Tk;
    return pairs * ((double)c->D / k->lanes * (c->Tq == 1 ? one : many) + 2 * (double)c->Dv / k->flops_per_ns);
}

size_t FSQ_FN(additive_attention_forward_work)(ptrdiff_t Tq, ptrdiff_t Tk, ptrdiff_t D, ptrdiff_t Dv, int threads) {
    additive_scratch s;
    return (size_t)threads * additive_lay_out(&s, NULL, additive_min(Tq, additive_block), Tq, Tk, D, Dv) + 64;
}

void FSQ_FN(additive_attention_forward)(real *y, real *weights, const real *q, const real *k, const real *v, const real *u, const int64_t *lengths,
                                        const unsigned char *visible, const real *bias, ptrdiff_t mask_batch, ptrdiff_t mask_query, ptrdiff_t mask_key,
                                        ptrdiff_t B, ptrdiff_t Tq, ptrdiff_t Tk, ptrdiff_t D, ptrdiff_t Dv, int threads, void *work) {
    additive_call c = {.y = y, .weights = weights, .q = q, .k = k, .v = v, .u = u, .lengths = lengths, .visible = visible, .bias = bias,
                       .mask_batch = mask_batch, .mask_query = mask_query, .mask_key = mask_key, .B = B, .Tq = Tq, .Tk = Tk, .D = D, .Dv = Dv, .work = work};
    additive_scratch s;
    if (B == 0 || Tq == 0) return;
    c.own = additive_lay_out(&s, NULL, additive_min(Tq, additive_block), Tq, Tk, D, Dv);
    fsq_parallel(fsq_threads_for(additive_nanoseconds(&c, 5, 1.6), threads), additive_forward_part, &c);
}

/* ---------------------------------------------------------------- backward */

/* dL/d(scores) of queries i0 to i1. */
static void additive_backward_scores(const additive_call *c, const additive_scratch *s, ptrdiff_t b, ptrdiff_t i0, ptrdiff_t i1) {
    const FSQ_FN(kernels) *k = FSQ_FN(kernels_now)();
    ptrdiff_t L = additive_keys(c, b), row = b * c->Tq + i0;
    real *ds = c->dscores + row * c->Tk;
    /* y = w v */
    if (c->dy) additive_product_turned(ds, c->Tk, c->dy + row * c->Dv, c->v + b * c->Tk * c->Dv, i1 - i0, L, c->Dv, s->panel);
    else memset(ds, 0, (size_t)((i1 - i0) * c->Tk) * sizeof(real));
    for (ptrdiff_t i = i0; i < i1; i++, ds += c->Tk) {
        const real *more = c->dweights ? c->dweights + (b * c->Tq + i) * c->Tk : NULL;
        for (ptrdiff_t j = 0; more && j < L; j++) ds[j] += more[j];
        k->additive_weights_backward(ds, c->weights + (b * c->Tq + i) * c->Tk, L, c->Tk);
    }
}

/* dv of keys j0 to j1 of all Tk. */
static void additive_backward_values(const additive_call *c, const additive_scratch *s, ptrdiff_t b, ptrdiff_t j0, ptrdiff_t j1) {
    ptrdiff_t L = c->dy && c->Tq ? additive_max(additive_min(additive_keys(c, b), j1), j0) : j0;
    real *dv = c->dv + b * c->Tk * c->Dv;
    /* y = w v */
    if (L > j0)
        additive_product(dv + j0 * c->Dv, c->Dv, c->weights + b * c->Tq * c->Tk + j0, 1, c->Tk, c->dy + b * c->Tq * c->Dv, L - j0, c->Dv, c->Tq, 0, s->panel);
    memset(dv + L * c->Dv, 0, (size_t)((j1 - L) * c->Dv) * sizeof(real));
}

/* dL/d(scores) without the pairs that are far, which are added later. */
static const real *additive_near(const additive_call *c, const additive_scratch *s, const real *ds, ptrdiff_t L) {
    for (ptrdiff_t i = 0; i < c->Tq; i++)
        for (ptrdiff_t j = 0; j < L; j++) s->scores[i * c->Tk + j] = s->far_q[i] || s->far_k[j] ? 0 : ds[i * c->Tk + j];
    return s->scores;
}

/* Units from d on, n of them, of the gradients of q, k and u by way of row b of the batch. */
static void additive_backward_units(const additive_call *c, const additive_scratch *s, ptrdiff_t b, ptrdiff_t d, ptrdiff_t n) {
    const FSQ_FN(kernels) *k = FSQ_FN(kernels_now)();
    ptrdiff_t L = additive_keys(c, b), D = c->D, Tq = c->Tq, Tk = c->Tk;
    const real *q = c->q + b * Tq * D, *keys = c->k + b * Tk * D, *ds = c->dscores + b * Tq * Tk;
    real *dq = c->dq + b * Tq * D, *dk = c->dk + b * Tk * D, *du = c->lines + b * D;
    for (ptrdiff_t j = L; j < Tk; j++) memset(dk + j * D + d, 0, (size_t)n * sizeof(real));
    /* s = u . tanh(q + k) */
    if (Tq == 1) {
        memset(dq + d, 0, (size_t)n * sizeof(real));
        memset(du + d, 0, (size_t)n * sizeof(real));
        k->additive_backward_far(dq + d, dk + d, du + d, q + d, keys + d, c->u + d, ds, L, D, n, 0);
        return;
    }
    int any_far = additive_prepare(c, s, q, Tq, keys, L);
    k->additive_backward(dq, dk, du, s->column, s->q, additive_stride(Tq), s->k, additive_stride(L), s->u, any_far ? additive_near(c, s, ds, L) : ds, Tk,
                         Tq, L, D, d, d + n);
    if (!any_far) return;
    for (ptrdiff_t i = 0; i < Tq; i++)
        for (ptrdiff_t j = 0; j < L; j++)
            if (s->far_q[i] || s->far_k[j])
                k->additive_backward_far(dq + i * D + d, dk + j * D + d, du + d, q + i * D + d, keys + j * D + d, c->u + d, ds + i * Tk + j, 1, D, n, 1);
}

static void additive_backward_part(const fsq_team *team, void *context) {
    const additive_call *c = context;
    const FSQ_FN(kernels) *k = FSQ_FN(kernels_now)();
    additive_scratch s = additive_mine(team, c, c->Tq);
    ptrdiff_t blocks = additive_blocks(team, c), rows = (c->Tq + blocks - 1) / blocks;
    ptrdiff_t cuts = additive_parts(team, c->B, c->Tk), keys = (c->Tk + cuts - 1) / cuts;
    ptrdiff_t parts = additive_parts(team, c->B, (c->D + k->lanes - 1) / k->lanes), units = additive_up((c->D + parts - 1) / parts, k->lanes), from, to;
    for (ptrdiff_t task = team->rank; task < c->B * blocks; task += team->size) {
        ptrdiff_t i0 = task % blocks * rows, i1 = additive_min(i0 + rows, c->Tq);
        if (i0 < i1) additive_backward_scores(c, &s, task / blocks, i0, i1);
    }
    for (ptrdiff_t task = team->rank; task < c->B * cuts; task += team->size) {
        ptrdiff_t j0 = task % cuts * keys, j1 = additive_min(j0 + keys, c->Tk);
        if (j0 < j1) additive_backward_values(c, &s, task / cuts, j0, j1);
    }
    fsq_barrier(team);
    for (ptrdiff_t task = team->rank; task < c->B * parts; task += team->size) {
        ptrdiff_t d0 = task % parts * units, d1 = additive_min(d0 + units, c->D);
        if (d0 < d1) additive_backward_units(c, &s, task / parts, d0, d1 - d0);
    }
    fsq_barrier(team);
    fsq_share(team, c->D, k->lanes, &from, &to);
    if (from < to) k->bias_backward(c->du + from, c->lines + from, c->B, c->D, to - from, 0);
}

static size_t additive_lines(ptrdiff_t B, ptrdiff_t D) { return (size_t)additive_up(B * D * (ptrdiff_t)sizeof(real), 64); }

size_t FSQ_FN(additive_attention_backward_work)(ptrdiff_t B, ptrdiff_t Tq, ptrdiff_t Tk, ptrdiff_t D, ptrdiff_t Dv, int threads) {
    additive_scratch s;
    return additive_lines(B, D) + (size_t)threads * additive_lay_out(&s, NULL, Tq, Tq, Tk, D, Dv) + 64;
}

void FSQ_FN(additive_attention_backward)(real *dq, real *dk, real *dv, real *du, real *dscores, const real *weights, const real *q, const real *k,
                                         const real *v, const real *u, const real *dy, const real *dweights, const int64_t *lengths, ptrdiff_t B,
                                         ptrdiff_t Tq, ptrdiff_t Tk, ptrdiff_t D, ptrdiff_t Dv, int threads, void *work) {
    additive_call c = {.dq = dq, .dk = dk, .dv = dv, .du = du, .dscores = dscores, .weights = (real *)weights, .q = q, .k = k, .v = v, .u = u, .dy = dy,
                       .dweights = dweights, .lengths = lengths, .B = B, .Tq = Tq, .Tk = Tk, .D = D, .Dv = Dv};
    additive_scratch s;
    char *first = (char *)(((uintptr_t)work + 63) & ~(uintptr_t)63);
    c.lines = (real *)first;
    c.work = first + additive_lines(B, D);
    c.own = additive_lay_out(&s, NULL, Tq, Tq, Tk, D, Dv);
    fsq_parallel(fsq_threads_for(additive_nanoseconds(&c, 7, 2.6), threads), additive_backward_part, &c);
}
