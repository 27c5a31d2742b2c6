/* attention_decode.c - one query for each head, as in step-by-step generation (part of attention.c).
 *
 * Lanes that stand for queries would idle, so here they stand for keys and for columns. Bound by the bytes of k and v. Keys come in
 * pieces of a fixed length, each with its own maximum and sums, which are merged in order: one query keeps all workers busy. Heads
 * that share keys follow each other while these are in L1. */

enum { attention_piece = 512, attention_together = 4 };     /* keys: 128 KB of k at D = 64; heads of one item */

/* What a piece leaves for the merging: its maximum, its sum and its y before it is divided. */
static ptrdiff_t attention_partial(const fsq_attention_call *c) { return c->Dv + 2; }
static ptrdiff_t attention_pieces(const fsq_attention_call *c) { return attention_max(1, (c->Tk + attention_piece - 1) / attention_piece); }

/* Scores of heads [h, h + n), which share keys [from, to), in rows of s. */
static void attention_decode_scores(const attention_run *a, real *s, ptrdiff_t b, ptrdiff_t h, ptrdiff_t n, ptrdiff_t from, ptrdiff_t to) {
    const fsq_attention_call *c = a->call;
    for (ptrdiff_t g = 0; g < n; g++)
        a->kernels->attention_dots(s + g * attention_piece, attention_at(&a->q, b, h + g, 0), attention_at(&a->k, b, attention_kv(c, h), from), a->k.row,
                                   to - from, c->D, (real)c->scale);
    for (ptrdiff_t g = 0; c->mask && g < n; g++) {
        attention_mask_tile m = attention_mask_of(c, b, h + g, 0, from);
        for (ptrdiff_t j = 0; j < to - from; j++) {
            real *at = s + g * attention_piece + j;
            if (m.is_bool) *at = ((const unsigned char *)m.data)[j * m.key] ? *at : -(real)INFINITY;
            else {
                real value = ((const real *)m.data)[j * m.key];
                *at = value == -(real)INFINITY ? value : *at + value;
            }
        }
    }
}

/* out (columns) += the sum of p[j] times row j of x, n rows. The register tile reads whole vectors. */
static void attention_decode_sum(const attention_run *a, real *out, const real *p, const real *x, ptrdiff_t row, ptrdiff_t n, ptrdiff_t columns) {
    const FSQ_FN(kernels) *k = a->kernels;
    if (columns == 0) return;
    if (columns % k->lanes == 0) k->gemm_block(out, columns, p, n, 1, 0, x, row, k->gemm_cols, 1, columns, n, 1, NULL, FSQ_IDENTITY);
    else k->gemm_row(out, p, 1, x, row, columns, n, 1, NULL, FSQ_IDENTITY);
}

/* out = the sum over keys [from, to) of p v; a key that the mask hides is passed over, whatever its value is. */
static void attention_decode_values(const attention_run *a, real *out, const real *p, const unsigned char *seen, ptrdiff_t b, ptrdiff_t h,
                                    ptrdiff_t from, ptrdiff_t to) {
    const fsq_attention_call *c = a->call;
    memset(out, 0, (size_t)c->Dv * sizeof(real));
    for (ptrdiff_t j = 0, end; j < to - from; j = end) {
        for (end = j + 1; end < to - from && (!c->mask || seen[end] == seen[j]);) end++;
        if (!c->mask || seen[j])
            attention_decode_sum(a, out, p + j, attention_at(&a->v, b, attention_kv(c, h), from + j), a->v.row, end - j, c->Dv);
    }
}

/* A piece of the keys of heads [h, h + n). */
static void attention_decode_piece(const attention_run *a, real *s, real *partial, ptrdiff_t b, ptrdiff_t h, ptrdiff_t n, ptrdiff_t piece) {
    const fsq_attention_call *c = a->call;
    attention_range r = attention_sees(c, b, 0);
    ptrdiff_t from = attention_max(r.first, piece * attention_piece), to = attention_min(r.end, (piece + 1) * attention_piece);
    unsigned char seen[attention_piece];
    if (from < to) attention_decode_scores(a, s, b, h, n, from, to);
    for (ptrdiff_t g = 0; g < n; g++) {
        real *scores = s + g * attention_piece, *out = partial + ((b * c->heads + h + g) * attention_pieces(c) + piece) * attention_partial(c);
        out[0] = -(real)INFINITY, out[1] = 0;
        if (from >= to) continue;
        for (ptrdiff_t j = 0; c->mask && j < to - from; j++) seen[j] = scores[j] != -(real)INFINITY;
        a->kernels->attention_row(scores, to - from, out, out + 1);
        attention_decode_values(a, out + 2, scores, seen, b, h + g, from, to);
    }
}

/* y and lse of a head from its pieces, first to last. */
static void attention_decode_merge(const attention_run *a, const real *partial, ptrdiff_t b, ptrdiff_t h) {
    const fsq_attention_call *c = a->call;
    real *y = attention_at(&a->y, b, h, 0), m = -(real)INFINITY, l = 0;
    ptrdiff_t head = b * c->heads + h, pieces = attention_pieces(c), size = attention_partial(c);
    partial += head * pieces * size;
    memset(y, 0, (size_t)c->Dv * sizeof(real));
    for (ptrdiff_t piece = 0; piece < pieces; piece++, partial += size) {
        if (partial[1] == 0) continue;                      /* saw nothing */
        real now = partial[0] > m ? partial[0] : m, shift = now == -(real)INFINITY ? 0 : now;
        real before = (real)exp((double)(m - shift)), by = (real)exp((double)(partial[0] - shift));
        for (ptrdiff_t d = 0; d < c->Dv; d++) y[d] = y[d] * before + partial[2 + d] * by;
        l = l * before + partial[1] * by, m = now;
    }
    for (ptrdiff_t d = 0; l != 0 && d < c->Dv; d++) y[d] /= l;
    if (a->lse) a->lse[head] = l == 0 ? -(real)INFINITY : m + (real)log((double)l);
}

static size_t attention_decode_partials(const fsq_attention_call *c) {
    return ((size_t)(c->B * c->heads * attention_pieces(c) * attention_partial(c)) * sizeof(real) + 63) & ~(size_t)63;
}

static size_t attention_decode_size(const fsq_attention_call *c, int threads) {
    return attention_decode_partials(c) + (size_t)threads * attention_together * attention_piece * sizeof(real);
}

static void attention_decode_body(const fsq_team *team, attention_run *a) {
    const fsq_attention_call *c = a->call;
    ptrdiff_t pieces = attention_pieces(c), shared = c->heads / c->kv_heads, groups = (shared + attention_together - 1) / attention_together, from, to;
    real *partial = (real *)a->work, *s = (real *)(a->work + attention_decode_partials(c)) + team->rank * (attention_together * attention_piece);
    ptrdiff_t items = c->B * c->kv_heads * groups * pieces;
    for (ptrdiff_t item; (item = attention_take(a, team, items)) >= 0;) {
        ptrdiff_t piece = item % pieces, group = item / pieces % groups, kv = item / pieces / groups;
        ptrdiff_t h = kv % c->kv_heads * shared + group * attention_together;
        attention_decode_piece(a, s, partial, kv / c->kv_heads, h, attention_min(attention_together, shared - group * attention_together), piece);
    }
    fsq_barrier(team);
    fsq_share(team, c->B * c->heads, 1, &from, &to);
    for (ptrdiff_t head = from; head < to; head++) attention_decode_merge(a, partial, head / c->heads, head % c->heads);
}

/* ---------------------------------------------------------------- backward */

/* One worker's rows of the heads that share keys: p and ds (shared, attention_piece), q and dy (shared, whole vectors), dq (D). */
typedef struct { real *p, *ds, *q, *dy; } attention_decode_rows;

static char *attention_carve_decode(attention_decode_rows *r, char *at, const FSQ_FN(kernels) *k, const fsq_attention_call *c) {
    ptrdiff_t shared = c->heads / c->kv_heads;
    r->p = attention_carve(&at, shared * attention_piece);
    r->ds = attention_carve(&at, shared * attention_piece);
    r->q = attention_carve(&at, shared * attention_whole(k, c->D));
    r->dy = attention_carve(&at, shared * attention_whole(k, c->Dv));
    return at;
}

/* ds is dL/d(score): a row of dscores where they are wanted, and ds scale. */
static void attention_decode_scale(const attention_run *a, real *ds, ptrdiff_t b, ptrdiff_t h, ptrdiff_t from, ptrdiff_t keys) {
    const fsq_attention_call *c = a->call;
    if (a->dscores) memcpy(a->dscores + (b * c->heads + h) * c->Tk + from, ds, (size_t)keys * sizeof(real));
    a->kernels->scale(ds, keys, (real)c->scale);
}

/* p and ds scale for keys [from, to) of heads [h, h + n). */
static void attention_decode_gradients(const attention_run *a, real *p, real *ds, ptrdiff_t b, ptrdiff_t h, ptrdiff_t n, ptrdiff_t from, ptrdiff_t to) {
    const fsq_attention_call *c = a->call;
    attention_decode_scores(a, p, b, h, n, from, to);
    /* y = w v */
    for (ptrdiff_t g = 0; g < n; g++) {
        real delta = 0;
        a->kernels->attention_dots(ds + g * attention_piece, attention_at(&a->dy, b, h + g, 0), attention_at(&a->v, b, attention_kv(c, h), from), a->v.row,
                                   to - from, c->Dv, 1);
        a->kernels->attention_delta(&delta, attention_at(&a->dy, b, h + g, 0), 0, attention_at(&a->y, b, h + g, 0), 0, 1, c->Dv);
        a->kernels->attention_row_backward(p + g * attention_piece, ds + g * attention_piece, a->lse[b * c->heads + h + g], delta, to - from);
        attention_decode_scale(a, ds + g * attention_piece, b, h + g, from, to - from);
    }
}

/* dq += ds k, for keys that the mask leaves: the others' k does not count. */
static void attention_decode_dq(const attention_run *a, const real *p, const real *ds, ptrdiff_t b, ptrdiff_t h, ptrdiff_t from, ptrdiff_t to) {
    const fsq_attention_call *c = a->call;
    for (ptrdiff_t j = 0, end; j < to - from; j = end) {
        for (end = j + 1; end < to - from && (!c->mask || (p[end] == 0) == (p[j] == 0));) end++;
        if (!c->mask || p[j] != 0)
            attention_decode_sum(a, attention_at(&a->dq, b, h, 0), ds + j, attention_at(&a->k, b, attention_kv(c, h), from + j), a->k.row, end - j, c->D);
    }
}

/* The keys of one head of k and v, and the queries that share it. */
static void attention_decode_backward_head(const attention_run *a, const attention_decode_rows *r, ptrdiff_t b, ptrdiff_t kv) {
    const fsq_attention_call *c = a->call;
    const FSQ_FN(kernels) *k = a->kernels;
    attention_range sees = attention_sees(c, b, 0);
    ptrdiff_t shared = c->heads / c->kv_heads, h0 = kv * shared, D = attention_whole(k, c->D), Dv = attention_whole(k, c->Dv), to;
    for (ptrdiff_t g = 0; g < shared; g++) {
        memset(attention_at(&a->dq, b, h0 + g, 0), 0, (size_t)c->D * sizeof(real));
        if (a->dscores) memset(a->dscores + (b * c->heads + h0 + g) * c->Tk, 0, (size_t)c->Tk * sizeof(real));
        memset(r->q + g * D, 0, (size_t)D * sizeof(real));
        memset(r->dy + g * Dv, 0, (size_t)Dv * sizeof(real));
        if (a->lse[b * c->heads + h0 + g] == -(real)INFINITY) continue; /* sees nothing: what it holds does not count */
        memcpy(r->q + g * D, attention_at(&a->q, b, h0 + g, 0), (size_t)c->D * sizeof(real));
        memcpy(r->dy + g * Dv, attention_at(&a->dy, b, h0 + g, 0), (size_t)c->Dv * sizeof(real));
    }
    attention_zero_keys(a, b, kv, 0, sees.first);
    attention_zero_keys(a, b, kv, sees.end, c->Tk);
    for (ptrdiff_t from = sees.first; from < sees.end; from = to) {
        to = attention_min(from + attention_piece, sees.end);
        for (ptrdiff_t g = 0; g < shared; g += attention_together)
            attention_decode_gradients(a, r->p + g * attention_piece, r->ds + g * attention_piece, b, h0 + g, attention_min(attention_together, shared - g),
                                       from, to);
        for (ptrdiff_t g = 0; g < shared; g++)
            attention_decode_dq(a, r->p + g * attention_piece, r->ds + g * attention_piece, b, h0 + g, from, to);
        if (c->D)
            k->gemm_block(attention_at(&a->dk, b, kv, from), a->dk.row, r->ds, 1, attention_piece, 0, r->q, D, k->gemm_cols, to - from, c->D, shared, 0, NULL,
                          FSQ_IDENTITY);
        if (c->Dv)
            k->gemm_block(attention_at(&a->dv, b, kv, from), a->dv.row, r->p, 1, attention_piece, 0, r->dy, Dv, k->gemm_cols, to - from, c->Dv, shared, 0,
                          NULL, FSQ_IDENTITY);
    }
}

static void attention_decode_backward_body(const fsq_team *team, attention_run *a) {
    const fsq_attention_call *c = a->call;
    attention_decode_rows r;
    size_t own = (size_t)attention_carve_decode(&r, NULL, a->kernels, c);
    attention_carve_decode(&r, a->work + (size_t)team->rank * own, a->kernels, c);
    for (ptrdiff_t item; (item = attention_take(a, team, c->B * c->kv_heads)) >= 0;)
        attention_decode_backward_head(a, &r, item / c->kv_heads, item % c->kv_heads);
}

static size_t attention_decode_backward_size(const fsq_attention_call *c, int threads) {
    attention_decode_rows r;
    return (size_t)threads * (size_t)attention_carve_decode(&r, NULL, FSQ_FN(kernels_now)(), c);
}
