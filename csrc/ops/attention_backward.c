/* attention_backward.c - the gradients of queries, keys and values, from scores computed again (part of attention.c; Dao et al. 2022).
 *
 * Two ways, which add up the same numbers in the same order:
 *   heads   one worker does all pairs of blocks of the heads that share keys: five products for each pair
 *   blocks  for fewer heads than workers: first blocks of keys are shared out, for dk and dv, then blocks of queries, for dq; scores
 *           and dp are computed twice, seven products for each pair */

/* One head's queries, ready for all blocks of keys; the index of a block times attention_queries rows. */
typedef struct {
    real *q, *dy, *dq;                                      /* (blocks, D or Dv, attention_queries) transposed; q scaled; dq scratch */
    real *lse, *delta;                                      /* (blocks attention_queries) */
    fsq_attention_array q_rows, dy_rows;                    /* as they lie, or, where vectors would reach past a row's end, a copy that may be read so */
    real *q_copy, *dy_copy;
} attention_head;

static int attention_copies(const FSQ_FN(kernels) *k, ptrdiff_t columns) { return columns % k->lanes != 0; }
static ptrdiff_t attention_whole(const FSQ_FN(kernels) *k, ptrdiff_t columns) { return (columns + k->lanes - 1) / k->lanes * k->lanes; }

static char *attention_carve_head(attention_head *h, char *at, const FSQ_FN(kernels) *k, const fsq_attention_call *c) {
    ptrdiff_t rows = attention_blocks(c) * attention_queries;
    *h = (attention_head){0};
    h->q = attention_carve(&at, rows * c->D);
    h->dq = attention_carve(&at, rows * c->D);
    h->dy = attention_carve(&at, rows * c->Dv);
    h->lse = attention_carve(&at, rows);
    h->delta = attention_carve(&at, rows);
    if (attention_copies(k, c->D)) h->q_copy = attention_carve(&at, c->Tq * attention_whole(k, c->D));
    if (attention_copies(k, c->Dv)) h->dy_copy = attention_carve(&at, c->Tq * attention_whole(k, c->Dv));
    return at;
}

/* Rows [i, i + n) of a head: x itself, or a copy with rows of whole vectors. */
static fsq_attention_array attention_rows(const attention_run *a, const fsq_attention_array *x, real *copy, const attention_block *q, ptrdiff_t columns) {
    if (!copy) return *x;
    ptrdiff_t row = attention_whole(a->kernels, columns);
    for (ptrdiff_t i = q->i; i < q->i + q->n; i++) {
        memcpy(copy + i * row, attention_at(x, q->b, q->h, i), (size_t)columns * sizeof(real));
        memset(copy + i * row + columns, 0, (size_t)(row - columns) * sizeof(real));
    }
    return (fsq_attention_array){copy, 0, 0, row};
}

/* Makes a block of queries ready. */
static void attention_ready(const attention_run *a, attention_head *head, ptrdiff_t b, ptrdiff_t h, ptrdiff_t i) {
    const fsq_attention_call *c = a->call;
    const FSQ_FN(kernels) *k = a->kernels;
    attention_block q = attention_block_of(a, b, h, i);
    ptrdiff_t row = (b * c->heads + h) * c->Tq + i;
    k->attention_turn_in(head->q + i * c->D, attention_at(&a->q, b, h, i), a->q.row, q.n, c->D, (real)c->scale);
    k->attention_turn_in(head->dy + i * c->Dv, attention_at(&a->dy, b, h, i), a->dy.row, q.n, c->Dv, 1);
    memset(head->dq + i * c->D, 0, (size_t)(attention_queries * c->D) * sizeof(real));
    memset(head->delta + i, 0, attention_queries * sizeof(real));
    memset(head->lse + i, 0, attention_queries * sizeof(real));
    memcpy(head->lse + i, a->lse + row, (size_t)q.n * sizeof(real));
    k->attention_delta(head->delta + i, attention_at(&a->dy, b, h, i), a->dy.row, attention_at(&a->y, b, h, i), a->y.row, q.n, c->Dv);
    if (a->dweights) k->attention_delta(head->delta + i, a->dweights + row * c->Tk, c->Tk, a->weights + row * c->Tk, c->Tk, q.n, c->Tk);
    if (a->dscores) memset(a->dscores + row * c->Tk, 0, (size_t)(q.n * c->Tk) * sizeof(real));
    head->q_rows = attention_rows(a, &a->q, head->q_copy, &q, c->D);
    head->dy_rows = attention_rows(a, &a->dy, head->dy_copy, &q, c->Dv);
}

/* t->s = p, t->p = dL/d(w m) m where w m v is y: for keys [from, to). Returns 0 where nothing is seen. */
static int attention_backward_weights(const attention_run *a, attention_tiles *t, const attention_head *head, const attention_block *q, ptrdiff_t from,
                                      ptrdiff_t to) {
    const fsq_attention_call *c = a->call;
    const FSQ_FN(kernels) *k = a->kernels;
    ptrdiff_t keys = to - from;
    t->q = head->q + q->i * c->D;
    if (!attention_scores(a, t, q, from, to)) return 0;
    k->attention_weights(t->s, head->lse + q->i, keys, q->lanes);
    /* y = (w m) v */
    k->gemm_block(t->p, attention_queries, attention_at(&a->v, q->b, attention_kv(c, q->h), from), a->v.row, 1, 0, head->dy + q->i * c->Dv,
                  attention_queries, k->gemm_cols, keys, q->lanes, c->Dv, 0, NULL, FSQ_IDENTITY);
    if (a->dweights) k->attention_turn_add(t->p, a->dweights + ((q->b * c->heads + q->h) * c->Tq + q->i) * c->Tk + from, c->Tk, q->n, keys);
    if (c->dropout > 0) attention_drop(a, q, t->p, from, keys);
    return 1;
}

/* x (keys, columns) += tile rows, for queries' rows as they lie; not of those that see nothing, whatever they hold. */
static void attention_add_keys(const attention_run *a, const attention_head *head, const fsq_attention_array *x, const attention_block *q, ptrdiff_t from,
                               ptrdiff_t keys, const real *tile, const fsq_attention_array *rows, ptrdiff_t columns) {
    const real *lse = head->lse + q->i;
    for (ptrdiff_t i = 0, end; columns && i < q->n; i = end) {
        int sees = lse[i] != -(real)INFINITY;
        for (end = i + 1; end < q->n && (lse[end] != -(real)INFINITY) == sees;) end++;
        if (sees)
            a->kernels->gemm_block(attention_at(x, q->b, attention_kv(a->call, q->h), from), x->row, tile + i, attention_queries, 1, 0,
                                   attention_at(rows, q->b, q->h, q->i + i), rows->row, a->kernels->gemm_cols, keys, columns, end - i, 1, NULL, FSQ_IDENTITY);
    }
}

/* t->p = ds scale; dscores where they are wanted. */
static void attention_backward_scores(const attention_run *a, attention_tiles *t, const attention_head *head, const attention_block *q, ptrdiff_t from,
                                      ptrdiff_t keys) {
    const fsq_attention_call *c = a->call;
    const FSQ_FN(kernels) *k = a->kernels;
    real scale = (real)c->scale;
    k->attention_scores_backward(t->p, t->s, head->delta + q->i, a->dscores ? 1 : scale, keys, q->lanes);
    if (!a->dscores) return;
    k->attention_turn_out(a->dscores + ((q->b * c->heads + q->h) * c->Tq + q->i) * c->Tk + from, c->Tk, t->p, NULL, q->n, keys);
    for (ptrdiff_t i = 0; i < q->lanes; i++) t->factor[i] = scale;
    k->attention_scale(t->p, t->factor, keys, q->lanes);
}

/* A block of queries and a block of keys: what they add to dk and dv, and to dq. */
static void attention_backward_pair(const attention_run *a, attention_tiles *t, const attention_head *head, const attention_block *q, ptrdiff_t block,
                                    int for_keys, int for_queries) {
    const fsq_attention_call *c = a->call;
    ptrdiff_t from = attention_max(block, q->sees.first), to = attention_min(block + attention_keys, q->sees.end), keys = to - from;
    if (!attention_backward_weights(a, t, head, q, from, to)) return;
    attention_backward_scores(a, t, head, q, from, keys);
    /* s = scale q k^T */
    if (for_queries) attention_add(a, t, q, head->dq + q->i * c->D, &a->k, c->D, t->p, t->s, from, keys);
    if (!for_keys) return;
    attention_add_keys(a, head, &a->dk, q, from, keys, t->p, &head->q_rows, c->D);
    /* y = (w m) v */
    if (c->dropout > 0) attention_drop(a, q, t->s, from, keys);
    attention_add_keys(a, head, &a->dv, q, from, keys, t->s, &head->dy_rows, c->Dv);
}

static void attention_zero_keys(const attention_run *a, ptrdiff_t b, ptrdiff_t kv, ptrdiff_t from, ptrdiff_t to) {
    for (ptrdiff_t j = from; j < to; j++) {
        memset(attention_at(&a->dk, b, kv, j), 0, (size_t)a->call->D * sizeof(real));
        memset(attention_at(&a->dv, b, kv, j), 0, (size_t)a->call->Dv * sizeof(real));
    }
}

static void attention_give_dq(const attention_run *a, const attention_head *head, ptrdiff_t b, ptrdiff_t h, ptrdiff_t i) {
    const fsq_attention_call *c = a->call;
    a->kernels->attention_turn_out(attention_at(&a->dq, b, h, i), a->dq.row, head->dq + i * c->D, NULL, attention_min(attention_queries, c->Tq - i), c->D);
}

/* ---------------------------------------------------------------- heads */

static void attention_backward_heads(const fsq_team *team, attention_run *a, size_t own) {
    const fsq_attention_call *c = a->call;
    ptrdiff_t shared = c->heads / c->kv_heads;
    attention_tiles t;
    attention_head head;
    attention_carve_head(&head, attention_carve_tiles(&t, a->work + (size_t)team->rank * own, c, 1), a->kernels, c);
    for (ptrdiff_t item; (item = attention_take(a, team, c->B * c->kv_heads)) >= 0;) {
        ptrdiff_t b = item / c->kv_heads, kv = item % c->kv_heads;
        attention_zero_keys(a, b, kv, 0, c->Tk);
        for (ptrdiff_t h = kv * shared; h < (kv + 1) * shared; h++) {
            for (ptrdiff_t i = 0; i < c->Tq; i += attention_queries) attention_ready(a, &head, b, h, i);
            for (ptrdiff_t block = 0; block < c->Tk; block += attention_keys)
                for (ptrdiff_t i = 0; i < c->Tq; i += attention_queries) {
                    attention_block q = attention_block_of(a, b, h, i);
                    attention_backward_pair(a, &t, &head, &q, block, 1, 1);
                }
            for (ptrdiff_t i = 0; i < c->Tq; i += attention_queries) attention_give_dq(a, &head, b, h, i);
        }
    }
}

/* ---------------------------------------------------------------- blocks */

/* All heads' queries come first in the scratch, then the workers' tiles. */
static size_t attention_head_size(const attention_run *a) {
    attention_head head;
    return (size_t)attention_carve_head(&head, NULL, a->kernels, a->call);
}

static attention_head attention_head_of(const attention_run *a, ptrdiff_t index) {
    attention_head head;
    attention_carve_head(&head, a->work + (size_t)index * attention_head_size(a), a->kernels, a->call);
    head.q_rows = head.q_copy ? (fsq_attention_array){head.q_copy, 0, 0, attention_whole(a->kernels, a->call->D)} : a->q;
    head.dy_rows = head.dy_copy ? (fsq_attention_array){head.dy_copy, 0, 0, attention_whole(a->kernels, a->call->Dv)} : a->dy;
    return head;
}

/* dk and dv of a block of keys of the heads that share them. */
static void attention_backward_keys(const attention_run *a, attention_tiles *t, ptrdiff_t b, ptrdiff_t kv, ptrdiff_t block) {
    const fsq_attention_call *c = a->call;
    ptrdiff_t shared = c->heads / c->kv_heads;
    attention_zero_keys(a, b, kv, block, attention_min(block + attention_keys, c->Tk));
    for (ptrdiff_t h = kv * shared; h < (kv + 1) * shared; h++) {
        attention_head head = attention_head_of(a, b * c->heads + h);
        for (ptrdiff_t i = 0; i < c->Tq; i += attention_queries) {
            attention_block q = attention_block_of(a, b, h, i);
            attention_backward_pair(a, t, &head, &q, block, 1, 0);
        }
    }
}

static void attention_backward_queries(const attention_run *a, attention_tiles *t, ptrdiff_t b, ptrdiff_t h, ptrdiff_t i) {
    const fsq_attention_call *c = a->call;
    attention_head head = attention_head_of(a, b * c->heads + h);
    attention_block q = attention_block_of(a, b, h, i);
    for (ptrdiff_t block = q.sees.first / attention_keys * attention_keys; block < q.sees.end; block += attention_keys)
        attention_backward_pair(a, t, &head, &q, block, 0, 1);
    attention_give_dq(a, &head, b, h, i);
}

static void attention_backward_blocks(const fsq_team *team, attention_run *a, size_t own) {
    const fsq_attention_call *c = a->call;
    ptrdiff_t blocks = attention_blocks(c), key_blocks = (c->Tk + attention_keys - 1) / attention_keys, from, to;
    ptrdiff_t queries = c->B * c->heads * blocks, keys = c->B * c->kv_heads * key_blocks;
    attention_tiles t;
    attention_carve_tiles(&t, a->work + (size_t)(a->call->B * a->call->heads) * attention_head_size(a) + (size_t)team->rank * own, c, 1);
    fsq_share(team, queries, 1, &from, &to);
    for (ptrdiff_t item = from; item < to; item++) {
        ptrdiff_t index = item / blocks;
        attention_head head = attention_head_of(a, index);
        attention_ready(a, &head, index / c->heads, index % c->heads, item % blocks * attention_queries);
    }
    fsq_barrier(team);
    for (ptrdiff_t item; (item = attention_take(a, team, keys + queries)) >= 0;) {
        if (item < keys) {
            ptrdiff_t kv = item / key_blocks;
            attention_backward_keys(a, &t, kv / c->kv_heads, kv % c->kv_heads, item % key_blocks * attention_keys);
        } else {
            ptrdiff_t block = item - keys, head = block / blocks;
            attention_backward_queries(a, &t, head / c->heads, head % c->heads, (blocks - 1 - block % blocks) * attention_queries);
        }
    }
}

/* ---------------------------------------------------------------- which way */

/* "heads" keeps every worker busy but for a rest at the end; below 5 / 7 of the workers' time, "blocks" is faster. */
static int attention_by_heads(const fsq_attention_call *c, int workers) {
    ptrdiff_t items = c->B * c->kv_heads, rounds = (items + workers - 1) / workers;
    return 7 * items >= 5 * rounds * workers;
}

typedef struct { size_t own, all; } attention_backward_size;

/* Scratch for a team of as many workers as came: a smaller team may take the other way. */
static attention_backward_size attention_backward_sizes(const fsq_attention_call *c, int workers) {
    attention_tiles t;
    attention_head head;
    size_t tiles = (size_t)attention_carve_tiles(&t, NULL, c, 1), queries = (size_t)attention_carve_head(&head, NULL, FSQ_FN(kernels_now)(), c);
    if (attention_by_heads(c, workers)) return (attention_backward_size){tiles + queries, (size_t)workers * (tiles + queries)};
    return (attention_backward_size){tiles, (size_t)workers * tiles + (size_t)(c->B * c->heads) * queries};
}

static void attention_backward_body(const fsq_team *team, attention_run *a) {
    size_t own = attention_backward_sizes(a->call, team->size).own;
    if (attention_by_heads(a->call, team->size)) attention_backward_heads(team, a, own);
    else attention_backward_blocks(team, a, own);
}
