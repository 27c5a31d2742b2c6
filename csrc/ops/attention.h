/* attention.h - what the files of the attention op share: which keys a block of queries sees, and a worker's tiles. */
#ifndef FSQ_ATTENTION_H
#define FSQ_ATTENTION_H

#include "../core/denormals.h"
#include "../core/threads.h"
#include "../kernels/kernels.h"

#include <math.h>
#include <string.h>

/* Keys first <= j < end. */
typedef struct { ptrdiff_t first, end; } attention_range;

/* Forward's blocks of keys are twice as long where no edge cuts across them: with 128 keys 5 % less time (Sapphire Rapids). */
enum { attention_most_keys = 2 * attention_keys };
static ptrdiff_t attention_forward_keys(const fsq_attention_call *c) { return c->causal || c->window ? attention_keys : attention_most_keys; }

/* One call: what the workers share. */
typedef struct attention_run {
    void (*body)(const fsq_team *team, struct attention_run *a);
    const fsq_attention_call *call;
    const FSQ_FN(kernels) *kernels;
    fsq_attention_array q, k, v, y;
    real *lse, *weights;                                    /* backward reads them */
    fsq_attention_array dy, dq, dk, dv;                     /* backward */
    const real *dweights;
    real *dscores;
    char *work;
    ptrdiff_t *taken;                                       /* of each worker's share of the items, a cache line for each */
} attention_run;

/* A block of queries of one head: which, and what of the tensors is theirs. */
typedef struct {
    ptrdiff_t b, h, i, n, lanes;                            /* queries [i, i + n); lanes: n up to whole vectors */
    attention_range sees;                                   /* what any of them sees */
    ptrdiff_t all_first, all_end;                           /* what each of them sees, but for the mask */
} attention_block;

/* A worker's scratch. A tile has a row of attention_queries reals for each key or column. */
typedef struct {
    real *q;                                                /* (D) transposed and scaled; backward's lie with their head */
    real *s, *p;                                            /* (attention_most_keys), backward (attention_keys) each */
    real *sum;                                              /* (Dv) forward: y before it is divided */
    real *m, *l, *factor, *first, *last, *lse;              /* of each query */
    unsigned char seen[attention_most_keys];                /* keys of the tile that some query sees; all, where all_seen */
    int all_seen, hides;                                    /* hides: some pair of the tile may be hidden */
} attention_tiles;

static ptrdiff_t attention_min(ptrdiff_t a, ptrdiff_t b) { return a < b ? a : b; }
static ptrdiff_t attention_max(ptrdiff_t a, ptrdiff_t b) { return a > b ? a : b; }

static real *attention_at(const fsq_attention_array *x, ptrdiff_t b, ptrdiff_t h, ptrdiff_t t) {
    return (real *)x->data + b * x->batch + h * x->head + t * x->row;
}

/* The head of k and v that head h of q reads. */
static ptrdiff_t attention_kv(const fsq_attention_call *c, ptrdiff_t h) { return h / (c->heads / c->kv_heads); }

/* What query i of row b sees, but for the mask. Neither end falls as i rises. */
static attention_range attention_sees(const fsq_attention_call *c, ptrdiff_t b, ptrdiff_t i) {
    ptrdiff_t at = i + c->offset, first = 0, end = c->key_lengths ? (ptrdiff_t)c->key_lengths[b] : c->Tk;
    if (c->causal) end = attention_min(end, at + 1);
    if (c->window) end = attention_min(end, at + c->window), first = attention_max(first, at - c->window + 1);
    end = attention_max(end, 0);
    return (attention_range){attention_min(first, end), end};
}

static attention_block attention_block_of(const attention_run *a, ptrdiff_t b, ptrdiff_t h, ptrdiff_t i) {
    const fsq_attention_call *c = a->call;
    ptrdiff_t n = attention_min(attention_queries, c->Tq - i), lanes = a->kernels->lanes;
    attention_range low = attention_sees(c, b, i), high = attention_sees(c, b, i + n - 1);
    return (attention_block){b, h, i, n, (n + lanes - 1) / lanes * lanes, {low.first, high.end}, high.first, low.end};
}

static ptrdiff_t attention_blocks(const fsq_attention_call *c) { return (c->Tq + attention_queries - 1) / attention_queries; }

enum { attention_line = 64 / sizeof(ptrdiff_t) };

/* The next of n items for this worker, or -1: first those of its own share, which are the same in every call, so that what it reads may
 * still be in its cache; then what slower workers have not taken. Whoever computes an item computes the same. */
static ptrdiff_t attention_take(const attention_run *a, const fsq_team *team, ptrdiff_t n) {
    for (int other = 0; other < team->size; other++) {
        fsq_team victim = {(team->rank + other) % team->size, team->size, NULL};
        ptrdiff_t from, to;
        fsq_share(&victim, n, 1, &from, &to);
        ptrdiff_t item = from + __atomic_fetch_add(a->taken + victim.rank * attention_line, 1, __ATOMIC_RELAXED);
        if (item < to) return item;
    }
    return -1;
}

#endif
