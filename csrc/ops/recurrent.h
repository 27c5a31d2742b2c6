/* recurrent.h - what the files of the recurrent op share: rows by length, one direction's run, and its steps. */
#ifndef FSQ_RECURRENT_H
#define FSQ_RECURRENT_H

#include "../core/denormals.h"
#include "matmul.h"

#include <math.h>
#include <string.h>

/* Scratch is laid out twice by the same code: once without memory, for its size. */
typedef struct {
    char *start;                                            /* NULL: only count */
    size_t used;
} recurrent_scratch;

static void *recurrent_take(recurrent_scratch *s, ptrdiff_t count, size_t size) {
    void *at = s->start ? s->start + s->used : NULL;
    s->used += ((size_t)count * size + 63) & ~(size_t)63;
    return at;
}

/* The first line of a caller's scratch that lies on a cache line. */
static void *recurrent_line(void *work) { return (void *)(((uintptr_t)work + 63) & ~(uintptr_t)63); }

/* The rows of a batch by falling length, so that those alive at a time come first: place r is row order[r]. Times count from
 * call->from; the reverse direction walks them downwards, and rows join it at their own ends. */
typedef struct {
    const fsq_recurrent_call *call;
    int reverse;
    ptrdiff_t steps, rows;                                  /* times of the longest row, of all rows together */
    ptrdiff_t *order, *length, *start;                      /* (B), (B), (steps + 1) rows before a time; NULL: all rows are equally long */
} recurrent_order;

static ptrdiff_t order_row(const recurrent_order *o, ptrdiff_t r) { return o->order ? o->order[r] : r; }
static ptrdiff_t order_length(const recurrent_order *o, ptrdiff_t r) { return o->length ? o->length[r] : o->steps; }
static ptrdiff_t order_start(const recurrent_order *o, ptrdiff_t t) { return o->start ? o->start[t] : t * o->call->B; }
static ptrdiff_t order_alive(const recurrent_order *o, ptrdiff_t t) { return order_start(o, t + 1) - order_start(o, t); }
/* The first and the last time of place r's steps. */
static ptrdiff_t order_first(const recurrent_order *o, ptrdiff_t r) { return o->reverse ? order_length(o, r) - 1 : 0; }
static ptrdiff_t order_last(const recurrent_order *o, ptrdiff_t r) { return o->reverse ? 0 : order_length(o, r) - 1; }

/* Is the state that place r starts from at time t replaced by zeros? */
static int order_reset(const recurrent_order *o, ptrdiff_t t, ptrdiff_t r) {
    const fsq_recurrent_call *c = o->call;
    if (!c->reset) return 0;
    ptrdiff_t b = order_row(o, r), boundary = c->from + t + o->reverse, end = c->lengths ? (ptrdiff_t)c->lengths[b] : c->T;
    return boundary < end && c->reset[boundary * c->B + b];
}

/* Does the state of place r at time t go on to another step, and there to nothing? */
static int order_cut(const recurrent_order *o, ptrdiff_t t, ptrdiff_t r) {
    return o->call->reset && t != order_last(o, r) && order_reset(o, o->reverse ? t - 1 : t + 1, r);
}

static ptrdiff_t call_gates(const fsq_recurrent_call *c) { return c->cell == FSQ_LSTM ? 4 : c->cell == FSQ_RNN_TANH || c->cell == FSQ_RNN_RELU ? 1 : 3; }
/* The reset gate stands before the second product: two products a step, one after the other. */
static int call_gated(const fsq_recurrent_call *c) { return c->cell >= FSQ_GRU_BEFORE; }
/* One register tile does products and cell; else the sums go through memory. */
static int call_tiled(const fsq_recurrent_call *c) { return !call_gated(c) && !c->layer_norm; }
static int call_projects(const fsq_recurrent_call *c) { return c->P != c->H; }
static int call_drops(const fsq_recurrent_call *c) { return c->draw && c->recurrent_dropout > 0; }

typedef enum { RECURRENT_ALONE, RECURRENT_ROWS, RECURRENT_UNITS } recurrent_split;

/* What one worker does of every step. */
typedef struct {
    ptrdiff_t r0, r1;                                       /* places */
    ptrdiff_t u0, u1;                                       /* hidden units */
    ptrdiff_t p0, p1;                                       /* elements of h: the same units, or the projection's */
} recurrent_share;

/* Where the parts of a packed layer begin, in reals. Tiled: the panels of kernels/recurrent.c at 0. Staged: the sum of the biases (or
 * what of them is added to W x), then each gate's panels apart, of W_ih and of W_hh. Either: W_hr's panels. */
typedef struct {
    ptrdiff_t w_ih, w_hh, w_hr, size;
    ptrdiff_t ih_gate, hh_gate;                             /* from one gate's panels to the next's */
} recurrent_layout;

/* What forward and backward draw alike, and zeros; recurrent_masks.c. */
typedef struct {
    real *zeros;                                            /* in place of a state: as wide as H and P */
    real *expected;                                         /* zoneout's m in evaluation, of h and then of c */
    real *drop;                                             /* (B, P) dropout's mask, by row */
    real *zone_h, *zone_c;                                  /* (B, P), (B, H) masks of a step, by place */
} recurrent_masks;

/* One direction's forward call. */
typedef struct {
    const fsq_recurrent_call *call;
    const fsq_recurrent_direction *direction;
    recurrent_order order;
    recurrent_split split;
    ptrdiff_t chunk;                                        /* times whose input product is made beforehand; 0: each step does its own */
    int dense;                                              /* the product reads h_next, not y */
    /* scratch */
    recurrent_masks masks;
    real *h_next[2];                                        /* (B, P) by place: d h for even and for odd times */
    real *hidden, *projected;                               /* (B, H), (B, P) by place, with a projection */
    real *sums;                                             /* the input product of a chunk, rows in the order of time */
    real *inner;                                            /* staged: (B, recurrent_inner_width) by place, from stage to stage */
    real *starts;                                           /* layer norm: norm_starts */
    real *x;                                                /* staged, where rows are ordered: (staged_rows, I), for each worker */
    recurrent_row *rows;                                    /* (B) by place, for each worker */
    const real **x_rows;                                    /* (chunk B), for each worker */
} recurrent_forward_run;

/* One step of one worker: places [r0, n) of the share, with `rows` + r the row of place r. */
typedef struct {
    const fsq_team *team;
    const recurrent_forward_run *run;
    recurrent_share share;
    recurrent_row *rows;
    const real **x_rows;
    ptrdiff_t time, n;
    ptrdiff_t known;                                        /* places whose row in the table is that of the step before */
    ptrdiff_t begin;                                        /* the first time of the chunk */
} recurrent_forward_at;

/* One direction's backward call. */
typedef struct {
    const fsq_recurrent_call *call;
    const fsq_recurrent_direction *direction;
    const fsq_recurrent_gradients *gradients;
    recurrent_order order;
    recurrent_split split;
    /* scratch; "of a chunk": rows in the order of time, as many as recurrent_back_rows allows */
    recurrent_masks masks;
    real *dh, *direct, *dc;                                 /* (B, P), (B, P) or NULL, (B, H) or NULL, by place: what goes on to the step before */
    real *upstream, *dhidden;                               /* dL/dh~ of a chunk (P), (B, H) by place, with a projection */
    real *dsx, *dsh;                                        /* dL/d(W x), dL/d(U d h') of a chunk (G H); dsh may be dsx */
    real *hiddens;                                          /* o tanh(c~) of a chunk (H), with a projection */
    real *inner;                                            /* staged: recurrent_back_inner_width of a chunk */
    real *starts;                                           /* as forward's */
    real *x, *h_in, *dx;                                    /* of a chunk: x where rows are ordered, d h', and dx before it is spread */
    real *panels;                                           /* W_hh, then W_hr, as the steps' products read them */
    recurrent_back_row *rows;                               /* (B) by place, for each worker */
    void *work;                                             /* matmul's */
} recurrent_backward_run;

/* Times [t0, t1), whose rows are worked on together. */
typedef struct {
    ptrdiff_t t0, t1, rows;
} backward_chunk;

/* One step of one worker, backwards. */
typedef struct {
    const fsq_team *team;
    const recurrent_backward_run *run;
    recurrent_share share;
    recurrent_back_row *rows;
    const real *w_hh, *w_hr;                                /* this worker's columns in panels */
    ptrdiff_t time, n;
    ptrdiff_t begin;                                        /* the first time of the chunk */
} recurrent_backward_at;

#endif
