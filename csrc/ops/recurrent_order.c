/* recurrent_order.c - the rows of a batch by falling length (recurrent.h). */

static ptrdiff_t order_local_length(const fsq_recurrent_call *c, ptrdiff_t b) {
    ptrdiff_t length = c->lengths ? (ptrdiff_t)c->lengths[b] : c->T, end = length < c->to ? length : c->to;
    return end > c->from ? end - c->from : 0;
}

/* Takes its scratch; with s->start NULL only counts it. A counting sort by the whole lengths, so that a part of the times has the same
 * order; equal ones in the order of the batch. */
static recurrent_order order_make(const fsq_recurrent_call *c, int reverse, recurrent_scratch *s) {
    ptrdiff_t N = c->to - c->from, B = c->B;
    recurrent_order o = {.call = c, .reverse = reverse, .steps = N, .rows = N * B};
    if (!c->lengths) return o;
    o.order = recurrent_take(s, B, sizeof(ptrdiff_t));
    o.length = recurrent_take(s, B, sizeof(ptrdiff_t));
    o.start = recurrent_take(s, c->T + 1, sizeof(ptrdiff_t));
    if (!s->start) return o;
    ptrdiff_t *next = o.start;                              /* next[n]: the place of the next row of length n */
    memset(next, 0, (size_t)(c->T + 1) * sizeof *next);
    for (ptrdiff_t b = 0; b < B; b++) next[c->lengths[b]]++;
    for (ptrdiff_t n = c->T, place = 0; n >= 0; n--) {
        ptrdiff_t count = next[n];
        next[n] = place;
        place += count;
    }
    for (ptrdiff_t b = 0; b < B; b++) {
        ptrdiff_t place = next[c->lengths[b]]++;
        o.order[place] = b;
        o.length[place] = order_local_length(c, b);
    }
    o.steps = B ? o.length[0] : 0;
    o.start[0] = 0;
    for (ptrdiff_t t = 0, alive = B; t < o.steps; t++) {
        while (o.length[alive - 1] <= t) alive--;
        o.start[t + 1] = o.start[t] + alive;
    }
    o.rows = o.start[o.steps];
    return o;
}

/* Places [*r0, *r1) of this worker: equal sums of lengths. */
static void order_share(const recurrent_order *o, const fsq_team *team, ptrdiff_t *r0, ptrdiff_t *r1) {
    ptrdiff_t B = o->call->B, done = 0, r = 0;
    if (!o->length) {
        fsq_share(team, B, 1, r0, r1);
        return;
    }
    for (int rank = 0; rank <= team->rank; rank++) {
        ptrdiff_t goal = o->rows * (rank + 1) / team->size;
        *r0 = r;
        while (r < B && (rank == team->size - 1 || done + o->length[r] / 2 < goal)) done += o->length[r++];
        *r1 = r;
    }
}
