/* attention_forward.c - a block of queries at a time (part of attention.c). */

/* y, lse and, where they are wanted, the weights of a block of queries. */
static void attention_forward_finish(const attention_run *a, attention_tiles *t, const attention_block *q) {
    const fsq_attention_call *c = a->call;
    const FSQ_FN(kernels) *k = a->kernels;
    ptrdiff_t row = (q->b * c->heads + q->h) * c->Tq + q->i, keys = attention_forward_keys(c);
    k->attention_finish(t->factor, t->lse, t->m, t->l, q->lanes);
    k->attention_turn_out(attention_at(&a->y, q->b, q->h, q->i), a->y.row, t->sum, t->factor, q->n, c->Dv);
    if (a->lse) memcpy(a->lse + row, t->lse, (size_t)q->n * sizeof(real));
    if (!a->weights) return;
    /* Scores again, now that the maxima are known. */
    real *out = a->weights + row * c->Tk;
    memset(out, 0, (size_t)(q->n * c->Tk) * sizeof(real));
    for (ptrdiff_t block = q->sees.first / keys * keys; block < q->sees.end; block += keys) {
        ptrdiff_t from = attention_max(block, q->sees.first), to = attention_min(block + keys, q->sees.end);
        if (!attention_scores(a, t, q, from, to)) continue;
        k->attention_weights(t->s, t->m, to - from, q->lanes);
        if (c->dropout > 0) attention_drop(a, q, t->s, from, to - from);
        k->attention_turn_out(out + from, c->Tk, t->s, t->factor, q->n, to - from);
    }
}

static void attention_forward_block(const attention_run *a, attention_tiles *t, const attention_block *q) {
    const fsq_attention_call *c = a->call;
    const FSQ_FN(kernels) *k = a->kernels;
    ptrdiff_t keys = attention_forward_keys(c);
    k->attention_turn_in(t->q, attention_at(&a->q, q->b, q->h, q->i), a->q.row, q->n, c->D, (real)c->scale);
    memset(t->sum, 0, (size_t)(c->Dv * attention_queries) * sizeof(real));
    for (ptrdiff_t i = 0; i < q->lanes; i++) t->m[i] = -(real)INFINITY, t->l[i] = 0;
    for (ptrdiff_t block = q->sees.first / keys * keys; block < q->sees.end; block += keys) {
        ptrdiff_t from = attention_max(block, q->sees.first), to = attention_min(block + keys, q->sees.end);
        if (!attention_scores(a, t, q, from, to)) continue;
        if (k->attention_softmax(t->s, t->m, t->l, t->factor, to - from, q->lanes)) k->attention_scale(t->sum, t->factor, c->Dv, q->lanes);
        if (c->dropout > 0) attention_drop(a, q, t->s, from, to - from);
        attention_add(a, t, q, t->sum, &a->v, c->Dv, t->s, t->s, from, to - from);
    }
    attention_forward_finish(a, t, q);
}

static size_t attention_forward_own(const fsq_attention_call *c) {
    attention_tiles t;
    return (size_t)attention_carve_tiles(&t, NULL, c, 0);
}

/* Blocks of queries of one head after the other, so that its keys and values stay in L2; the last first, since causal ones are the longest. */
static void attention_forward_body(const fsq_team *team, attention_run *a) {
    const fsq_attention_call *c = a->call;
    ptrdiff_t blocks = attention_blocks(c), items = c->B * c->heads * blocks;
    attention_tiles t;
    attention_carve_tiles(&t, a->work + (size_t)team->rank * attention_forward_own(c), c, 0);
    for (ptrdiff_t item; (item = attention_take(a, team, items)) >= 0;) {
        ptrdiff_t head = item / blocks, i = (blocks - 1 - item % blocks) * attention_queries;
        attention_block q = attention_block_of(a, head / c->heads, head % c->heads, i);
        attention_forward_block(a, &t, &q);
    }
}
