/* attention.c - scaled dot-product attention: the scores of a block of 64 queries against a block of keys, which forward and
 * backward walk (kernels/attention.c has the tile).
 *
 * All products are gemm_block's, on a tile as it lies:
 *   scores (keys, queries)  = k q^T, dp = v dy^T     rows of k and v as they lie; q and dy transposed once for each block of queries
 *   y^T (Dv, queries)      += v^T p, dq^T += k^T ds   columns of v and k as they lie
 *   dv (keys, Dv)          += p dy, dk += ds q        rows of dy and q as they lie
 * Blocks of keys begin at multiples of their length whatever the query sees, and are walked upwards: so a query's sums do not depend on its
 * neighbours. Blocks of which no query sees anything are not computed; at the edges keys are cut off, which adds nothing to nothing. */
#include "attention.h"

#include "matmul.h"

static void *attention_carve(char **at, ptrdiff_t count) {
    void *taken = *at;
    *at += ((size_t)count * sizeof(real) + 63) & ~(size_t)63;
    return taken;
}

/* Lays out a worker's tiles from `at` on; returns their end. With NULL: their size. */
static char *attention_carve_tiles(attention_tiles *t, char *at, const fsq_attention_call *c, int backward) {
    enum { Q = attention_queries };
    t->s = attention_carve(&at, (backward ? attention_keys : attention_most_keys) * Q);
    t->p = backward ? attention_carve(&at, attention_keys * Q) : NULL;
    t->q = backward ? NULL : attention_carve(&at, c->D * Q);
    t->sum = backward ? NULL : attention_carve(&at, c->Dv * Q);
    t->m = attention_carve(&at, 6 * Q);
    t->l = t->m + Q, t->factor = t->l + Q, t->first = t->factor + Q, t->last = t->first + Q, t->lse = t->last + Q;
    return at;
}

/* The mask as it begins at a query and a key. */
static attention_mask_tile attention_mask_of(const fsq_attention_call *c, ptrdiff_t b, ptrdiff_t h, ptrdiff_t i, ptrdiff_t j) {
    ptrdiff_t at = b * c->mask_batch + h * c->mask_head + i * c->mask_query + j * c->mask_key;
    return (attention_mask_tile){(const char *)c->mask + at * (ptrdiff_t)(c->mask_is_bool ? 1 : sizeof(real)), c->mask_is_bool, c->mask_query, c->mask_key};
}

/* The ends of what each query sees, in keys from `from` on, for keys [from, to). */
static void attention_edges(const attention_run *a, attention_tiles *t, const attention_block *q, ptrdiff_t from, ptrdiff_t to) {
    for (ptrdiff_t i = 0; i < q->lanes; i++) {
        attention_range r = attention_sees(a->call, q->b, q->i + attention_min(i, q->n - 1));
        t->first[i] = (real)(attention_min(attention_max(r.first, from), to) - from);
        t->last[i] = (real)(attention_min(attention_max(r.end, from), to) - from - 1);
    }
}

/* t->s = the scores of keys [from, to), hidden ones -inf. Returns 0 where nothing is seen. */
static int attention_scores(const attention_run *a, attention_tiles *t, const attention_block *q, ptrdiff_t from, ptrdiff_t to) {
    const fsq_attention_call *c = a->call;
    const FSQ_FN(kernels) *k = a->kernels;
    if (from >= to) return 0;
    k->gemm_block(t->s, attention_queries, attention_at(&a->k, q->b, attention_kv(c, q->h), from), a->k.row, 1, 0, t->q, attention_queries, k->gemm_cols,
                  to - from, q->lanes, c->D, 0, NULL, FSQ_IDENTITY);
    if (c->mask) {
        attention_mask_tile mask = attention_mask_of(c, q->b, q->h, q->i, from);
        k->attention_mask(t->s, &mask, to - from, q->n);
    }
    t->hides = c->mask || from < q->all_first || to > q->all_end;
    if (from < q->all_first || to > q->all_end) {
        attention_edges(a, t, q, from, to);
        k->attention_hide(t->s, t->first, t->last, to - from, q->lanes);
    }
    t->all_seen = 1;
    if (!c->mask) return 1;
    ptrdiff_t seen = k->attention_seen(t->seen, t->s, to - from, q->n);
    t->all_seen = seen == to - from;
    return seen > 0;
}

/* The next run of keys that some query sees, from *j on: [*j, end); returns end, or -1. */
static ptrdiff_t attention_next_run(const attention_tiles *t, ptrdiff_t *j, ptrdiff_t keys) {
    ptrdiff_t end;
    while (!t->all_seen && *j < keys && !t->seen[*j]) ++*j;
    if (*j >= keys) return -1;
    for (end = *j + 1; end < keys && (t->all_seen || t->seen[end]);) end++;
    return end;
}

/* Rows of x that hold an infinity or a NaN: for the queries that see the key, p != 0, their part of c is added here, number by number; a
 * product would take 0 times NaN to the others too. */
static void attention_add_apart(const attention_run *a, attention_tiles *t, const attention_block *q, real *c, const fsq_attention_array *x,
                                ptrdiff_t columns, const real *tile, const real *p, ptrdiff_t from, ptrdiff_t keys) {
    unsigned char plain[attention_most_keys];
    const real *rows = attention_at(x, q->b, attention_kv(a->call, q->h), from);
    if (a->kernels->attention_plain(plain, rows, x->row, keys, columns) == keys) return;
    for (ptrdiff_t j = 0; j < keys; j++, rows += x->row, tile += attention_queries, p += attention_queries) {
        for (ptrdiff_t i = 0; !plain[j] && i < q->n; i++)
            for (ptrdiff_t d = 0; p[i] != 0 && d < columns; d++) c[d * attention_queries + i] += rows[d] * tile[i];
        t->seen[j] = (t->all_seen || t->seen[j]) && plain[j];
    }
    t->all_seen = 0;
}

/* c (columns, queries) += x^T tile for keys from `from` on: the columns of k or v, of keys that some query sees, with its weight p. */
static void attention_add(const attention_run *a, attention_tiles *t, const attention_block *q, real *c, const fsq_attention_array *x,
                          ptrdiff_t columns, const real *tile, const real *p, ptrdiff_t from, ptrdiff_t keys) {
    const FSQ_FN(kernels) *k = a->kernels;
    if (t->hides) attention_add_apart(a, t, q, c, x, columns, tile, p, from, keys);
    for (ptrdiff_t j = 0, end; columns && (end = attention_next_run(t, &j, keys)) >= 0; j = end)
        k->gemm_block(c, attention_queries, attention_at(x, q->b, attention_kv(a->call, q->h), from + j), 1, x->row, 0, tile + j * attention_queries,
                      attention_queries, k->gemm_cols, columns, q->lanes, end - j, 1, NULL, FSQ_IDENTITY);
}

static void attention_drop(const attention_run *a, const attention_block *q, real *p, ptrdiff_t from, ptrdiff_t keys) {
    const fsq_attention_call *c = a->call;
    double p_drop = c->dropout;
    a->kernels->attention_dropout(p, from, q->i, (uint32_t)(q->b * c->heads + q->h), keys, q->lanes, c->key, (uint64_t)ceil(p_drop * 0x1p32),
                                  p_drop < 1 ? (real)(1 / (1 - p_drop)) : 0);
}

/* The pairs of a query and a key that any sums are made for, roughly: for the choice of threads. */
static double attention_pairs(const fsq_attention_call *c) {
    double keys = (double)c->Tk;
    if (c->key_lengths) {
        keys = 0;
        for (ptrdiff_t b = 0; b < c->B; b++) keys += (double)c->key_lengths[b] / (double)c->B;
    }
    if (c->window && 2.0 * (double)c->window < keys) keys = 2.0 * (double)c->window;
    if (c->causal) keys *= 0.5 + 32 / ((double)c->Tk + 64);
    return (double)c->B * (double)c->heads * (double)c->Tq * keys;
}

static double attention_nanoseconds(const attention_run *a, double products) {
    const fsq_attention_call *c = a->call;
    double lanes = a->kernels->lanes, full = c->Tq < lanes ? lanes / (double)attention_max(c->Tq, 1) : 1;
    return attention_pairs(c) * full * (products * (double)(c->D + c->Dv) / a->kernels->flops_per_ns + 8 / lanes);
}

/* A worker's part, with denormals flushed: the weight of a key far below the greatest score is one, and costs an Intel core 150 cycles. */
static void attention_body(const fsq_team *team, void *context) {
    fsq_fp_state before = fsq_flush_denormals();
    ((attention_run *)context)->body(team, context);
    fsq_restore_denormals(before);
}

/* Scratch for what every call begins with. */
static size_t attention_work(int threads) { return 64 + (size_t)threads * attention_line * sizeof(ptrdiff_t); }

static void attention_start(attention_run *a, double nanoseconds, int threads, void *work) {
    a->taken = (ptrdiff_t *)(((uintptr_t)work + 63) & ~(uintptr_t)63);
    a->work = (char *)(a->taken + (size_t)threads * attention_line);
    memset(a->taken, 0, (size_t)threads * attention_line * sizeof(ptrdiff_t));
    fsq_parallel(fsq_threads_for(nanoseconds, threads), attention_body, a);
}

#include "attention_forward.c"
#include "attention_backward.c"
#include "attention_decode.c"

/* ---------------------------------------------------------------- entry points */

/* One query for each head, and neither dropout nor weights. */
static int attention_decodes(const attention_run *a) {
    const fsq_attention_call *c = a->call;
    return c->Tq == 1 && c->dropout == 0 && !c->tiles && !a->weights;
}

/* The time that the bytes of k and v take: about 40 a nanosecond from L2. */
static double attention_decode_nanoseconds(const fsq_attention_call *c) {
    return (double)c->B * (double)c->kv_heads * (double)c->Tk * (double)(c->D + c->Dv) * sizeof(real) / 40;
}

static size_t attention_greater(size_t a, size_t b) { return a > b ? a : b; }

size_t FSQ_FN(attention_forward_work)(const fsq_attention_call *c, int threads) {
    size_t blocks = (size_t)threads * attention_forward_own(c), one = c->Tq == 1 ? attention_decode_size(c, threads) : 0;
    return attention_work(threads) + attention_greater(blocks, one);
}

void FSQ_FN(attention_forward)(const fsq_attention_array *y, real *lse, real *weights, const fsq_attention_array *q, const fsq_attention_array *k,
                               const fsq_attention_array *v, const fsq_attention_call *c, int threads, void *work) {
    attention_run a = {.call = c, .kernels = FSQ_FN(kernels_now)(), .q = *q, .k = *k, .v = *v, .y = *y, .lse = lse, .weights = weights};
    int decodes = attention_decodes(&a);
    a.body = decodes ? attention_decode_body : attention_forward_body;
    attention_start(&a, decodes ? attention_decode_nanoseconds(c) : attention_nanoseconds(&a, weights ? 3 : 2), threads, work);
}

size_t FSQ_FN(attention_backward_work)(const fsq_attention_call *c, int threads) {
    size_t most = c->Tq == 1 ? attention_decode_backward_size(c, threads) : 0;
    for (int workers = 1; workers <= threads; workers++) most = attention_greater(most, attention_backward_sizes(c, workers).all);
    return attention_work(threads) + most;
}

void FSQ_FN(attention_backward)(const fsq_attention_array *dq, const fsq_attention_array *dk, const fsq_attention_array *dv, real *dscores,
                                const fsq_attention_array *q, const fsq_attention_array *k, const fsq_attention_array *v, const fsq_attention_array *y,
                                const real *lse, const fsq_attention_array *dy, const real *weights, const real *dweights, const fsq_attention_call *c,
                                int threads, void *work) {
    attention_run a = {.call = c, .kernels = FSQ_FN(kernels_now)(), .q = *q, .k = *k, .v = *v, .y = *y, .lse = (real *)lse, .weights = (real *)weights,
                       .dy = *dy, .dq = *dq, .dk = *dk, .dv = *dv, .dweights = dweights, .dscores = dscores};
    int decodes = attention_decodes(&a);
    a.body = decodes ? attention_decode_backward_body : attention_backward_body;
    attention_start(&a, decodes ? 3 * attention_decode_nanoseconds(c) : attention_nanoseconds(&a, 5), threads, work);
}
