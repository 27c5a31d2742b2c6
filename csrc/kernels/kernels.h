/* kernels.h - the table of what is compiled once per instruction set and float type.
 *
 * Kernels work on registers and on memory that they are given: no OpenMP, no allocation, no I/O. The ops (csrc/ops) block, thread
 * and walk through time over this table. Block sizes that depend on the registers stand beside the functions.
 * Every table is complete: an instruction set that has nothing better compiles the same source with its own vector width. */
#ifndef FSQ_KERNELS_H
#define FSQ_KERNELS_H

#include <stddef.h>
#include <stdint.h>

#include "../core/cpu.h"
#include "../core/real.h"
#include "../fastseq.h"

/* A tile of attention: a row for each key of a block, a lane for each query. 64 queries are one panel of the widest product. */
enum { attention_queries = 64, attention_keys = 64 };

/* The mask where a tile begins: bytes, 0 = hidden, or reals; strides in elements. */
typedef struct {
    const void *data;
    int is_bool;
    ptrdiff_t query, key;
} attention_mask_tile;

/* One batch row at one step of a recurrent layer: where its things are. */
typedef struct {
    const real *x;                              /* (I); not read where the step is hoisted: */
    real *sums;                                 /* the biases and W x, beforehand, in the order of the panels; staged cells add to them */
    const real *h_in;                           /* (P) what the recurrent product reads: d h' */
    const real *h_before, *c_before;            /* (P) h', (H) c' */
    const real *drop, *zone_h, *zone_c;         /* (P), (P), (H) masks: d of the next step's product, m of zoneout; NULL: none */
    real *h, *c;                                /* (P), (H) out; c may be c_before */
    real *h_next;                               /* (P) out: d h for the next step's product; NULL where that reads h itself */
    real *hidden;                               /* (H) out: the LSTM's o tanh(c~) where a projection makes h of it, else NULL */
    real *cache;                                /* out: what backward needs; NULL for inference */
    real *inner;                                /* staged cells (gated.c, norm.c): from stage to stage */
} recurrent_row;

/* Layer norm: gains (G H), the LSTM's gain and bias of c~ (H), and what the normalised sums are added to: all biases, (G H) or, with those
 * that the GRU's r multiplies apart, (4 H). */
typedef struct {
    const real *ih_weight, *hh_weight, *c_weight, *c_bias, *starts;
} recurrent_norm;

/* One step for n rows. */
typedef struct {
    const recurrent_row *rows;
    ptrdiff_t n, I, H, P;
    const real *peepholes;                      /* (3, H) or NULL */
    int relu, hoisted;                          /* the RNN's function; sums are given in place of x, */
    int fed;                                    /* or, with this too, for x to be added to them */
    int fetch_ahead;                            /* the weights do not stay in L2: fetch the next block's while this one is at work */
    fsq_cell cell;                              /* of gated.c, and its biases (G H) */
    const real *starts;
    const recurrent_norm *norm;                 /* of norm.c */
} recurrent_step;

/* The same row backwards. */
typedef struct {
    const real *cache, *h, *h_before, *c_before;
    const real *dy, *dcell;                     /* NULL = 0 */
    const real *drop, *zone_h, *zone_c;         /* drop: the mask of the next step's product */
    real *dh;                                   /* (P) dL/d(d h) by way of the next step's product; gated.c: out, dL/d(d h') */
    real *direct;                               /* (P) in: dL/dh by other ways; out: the same for h'. NULL where there are none */
    real *dc;                                   /* (H) in: dL/dc by way of the next step; out: the same for c' */
    real *dstate;                               /* (P) out: dL/dh by all its ways, or NULL */
    real *dsx, *dsh;                            /* (G, H) out: dL/d(W x), dL/d(U d h'); the same memory where they are the same */
    int cut;                                    /* no state went on to the next step: dh, direct and dc count as 0 */
    real *inner;                                /* staged cells: from stage to stage, and to the gradients of the weights */
    real *hidden;                               /* (H) out: o tanh(norm(c~)) where a projection follows, else NULL */
} recurrent_back_row;

typedef struct {
    const recurrent_back_row *rows;
    ptrdiff_t n, H;
    const real *peepholes;
    int relu;
    fsq_cell cell;
    const recurrent_norm *norm;
} recurrent_back;

/* What stays the same over all elements of an update (fastseq.h has the equations). */
typedef struct { real lr, momentum, weight_decay; int nesterov, first; } sgd_constants;
typedef struct { real lr, eps, weight_decay; } adagrad_constants;
typedef struct { real lr, alpha, other, eps, momentum, weight_decay; } rmsprop_constants;    /* other = 1 - alpha */
/* other = 1 - beta; rate = lr / (1 - beta1^step); correction = 1 / (1 - beta2^step); keep = 1 or, decoupled, 1 - lr weight_decay */
typedef struct { real beta1, other1, beta2, other2, rate, correction, eps, weight_decay, keep; } adam_constants;

/* Rows of layer norm (fastseq.h): `rows` of them, N elements each. */
typedef struct {
    real *y, *s, *mean, *rstd;                  /* s NULL: there is no residual, x is s; mean NULL: not centred */
    const real *x, *residual, *weight, *bias;
    ptrdiff_t rows, N;
    real eps;
} layer_norm_rows;

/* dweight and dbias (N) become the sums over these rows; dx, dweight, dbias NULL: not wanted; ds NULL: 0. */
typedef struct {
    real *dx, *dweight, *dbias;
    const real *dy, *ds, *s, *mean, *rstd, *weight;
    ptrdiff_t rows, N;
} layer_norm_back_rows;

/* Samples [sample, sample_end), output positions [from, to) of each: some columns of a convolution (ops/conv.c). */
typedef struct { ptrdiff_t sample, sample_end, from, to; } conv_piece;

/* Both ways of batch norm (fastseq.h): NULL for what is not wanted or not there. */
typedef struct {
    real *y, *mean, *variance, *dx, *dweight, *dbias;
    const real *x, *weight, *bias, *dy;
    ptrdiff_t N, C, L;
    real eps;
    int given;
} batch_norm_call;

typedef struct FSQ_FN(kernels) {
    int lanes;                                  /* VL */
    double flops_per_ns;                        /* of the register tile on one core, roughly: for the choice of threads */
    /* ---- gemm.c */
    int gemm_rows, gemm_cols;                   /* the register tile */
    int gemm_turned_rows;                       /* the most rows that gemm_turned takes */
    void (*gemm_block)(real *c, ptrdiff_t c_row, const real *a, ptrdiff_t a_row, ptrdiff_t a_k, int packed_a, const real *b, ptrdiff_t b_k,
                       ptrdiff_t b_panel, ptrdiff_t M, ptrdiff_t n, ptrdiff_t K, int add, const real *bias, fsq_function function);
    void (*gemm_row)(real *c, const real *a, ptrdiff_t a_k, const real *b, ptrdiff_t b_row, ptrdiff_t n, ptrdiff_t K, int add, const real *bias,
                     fsq_function function); /* one row of a, rows of b contiguous */
    void (*gemm_turned)(real *c, ptrdiff_t c_row, const real *a, ptrdiff_t a_row, ptrdiff_t a_k, const real *b, ptrdiff_t b_col, ptrdiff_t M,
                        ptrdiff_t n, ptrdiff_t K, int add, const real *bias, fsq_function function); /* columns of b contiguous */
    void (*gemm_pack_a)(real *packed, const real *a, ptrdiff_t a_row, ptrdiff_t a_k, ptrdiff_t M, ptrdiff_t K);
    void (*gemm_pack_b)(real *panel, const real *b, ptrdiff_t b_row, ptrdiff_t b_col, ptrdiff_t n, ptrdiff_t K);
    /* ---- recurrent.c, with rnn.c, lstm.c and gru.c: by fsq_cell, NULL for cells that are not one tile */
    void (*recurrent_forward_blocks[FSQ_MUT3 + 1])(const recurrent_step *s, const real *packed, ptrdiff_t from, ptrdiff_t to, int backwards);
    void (*recurrent_input_blocks[FSQ_MUT3 + 1])(real *sums, ptrdiff_t sums_row, const real *const *x, const real *packed, ptrdiff_t n,
                                                 ptrdiff_t I, ptrdiff_t P, ptrdiff_t from, ptrdiff_t to);
    void (*recurrent_pack_blocks)(real *packed, const real *w_ih, ptrdiff_t w_ih_row, const real *w_hh, const real *b_ih, const real *b_hh, int gates,
                                  int starts, ptrdiff_t I, ptrdiff_t P, ptrdiff_t H, ptrdiff_t from, ptrdiff_t to);
    void (*recurrent_backward_units[FSQ_MUT3 + 1])(const recurrent_back *s, ptrdiff_t from, ptrdiff_t to);
    void (*recurrent_finish_units)(const recurrent_row *rows, const real *h, ptrdiff_t n, ptrdiff_t P, ptrdiff_t from, ptrdiff_t to);
    void (*recurrent_upstream_units)(real *dh, const recurrent_back_row *rows, ptrdiff_t n, ptrdiff_t P, ptrdiff_t from, ptrdiff_t to);
    void (*recurrent_carry)(real *dh_before, const recurrent_back_row *row, ptrdiff_t P);
    void (*recurrent_mask)(real *mask, ptrdiff_t from, ptrdiff_t to, uint64_t key, uint32_t t, uint32_t b, uint64_t threshold, real below, real above);
    void (*lstm_hidden_again)(real *hidden, const recurrent_back_row *row, ptrdiff_t H);
    void (*lstm_backward_peepholes)(real *dp, const recurrent_back_row *rows, ptrdiff_t count, ptrdiff_t H, ptrdiff_t from, ptrdiff_t to);
    /* ---- gated.c: units [from, to) of a step between two products; the operands of one row */
    void (*gated_reset_units)(const recurrent_step *s, ptrdiff_t from, ptrdiff_t to);
    void (*gated_forward_units)(const recurrent_step *s, ptrdiff_t from, ptrdiff_t to);
    void (*gated_backward_units)(const recurrent_back *s, ptrdiff_t from, ptrdiff_t to);
    void (*gated_backward_reset)(const recurrent_back *s, ptrdiff_t from, ptrdiff_t to);
    void (*gated_backward_tanh)(const recurrent_back *s, ptrdiff_t from, ptrdiff_t to);
    void (*gated_operands)(real *inner, const real *v, const real *r, ptrdiff_t H, fsq_cell cell);
    /* ---- layer_norm.c: whole rows, by whether the mean is taken away */
    void (*layer_norm_forward[2])(const layer_norm_rows *rows);
    void (*layer_norm_backward[2])(const layer_norm_back_rows *rows);
    /* ---- norm.c: whole rows, for FSQ_LSTM and FSQ_GRU; n entries of a gradient */
    void (*norm_forward_rows[FSQ_GRU + 1])(const recurrent_step *s);
    void (*norm_backward_rows[FSQ_GRU + 1])(const recurrent_back *s);
    void (*norm_backward_row)(real *dgain, real *dbias, real *db, const real *d, const real *x, ptrdiff_t n);
    /* ---- attention.c: tiles (keys, queries), queries up to whole vectors; n says where only so many of them count */
    void (*attention_turn_in)(real *tile, const real *x, ptrdiff_t row_x, ptrdiff_t n, ptrdiff_t D, real factor);
    void (*attention_turn_out)(real *y, ptrdiff_t row_y, const real *tile, const real *factor, ptrdiff_t n, ptrdiff_t D);
    void (*attention_turn_add)(real *tile, const real *x, ptrdiff_t row_x, ptrdiff_t n, ptrdiff_t keys);
    void (*attention_hide)(real *s, const real *first, const real *last, ptrdiff_t keys, ptrdiff_t queries);
    void (*attention_mask)(real *s, const attention_mask_tile *mask, ptrdiff_t keys, ptrdiff_t n);
    ptrdiff_t (*attention_seen)(unsigned char *seen, const real *s, ptrdiff_t keys, ptrdiff_t n);
    ptrdiff_t (*attention_plain)(unsigned char *plain, const real *x, ptrdiff_t row, ptrdiff_t keys, ptrdiff_t columns);
    void (*attention_dropout)(real *p, ptrdiff_t key, ptrdiff_t query, uint32_t row, ptrdiff_t keys, ptrdiff_t n, uint64_t seed, uint64_t threshold,
                              real factor);
    int (*attention_softmax)(real *s, real *m, real *l, real *factor, ptrdiff_t keys, ptrdiff_t queries);
    void (*attention_scale)(real *tile, const real *factor, ptrdiff_t rows, ptrdiff_t queries);
    void (*attention_finish)(real *inverse, real *lse, const real *m, const real *l, ptrdiff_t queries);
    void (*attention_dots)(real *s, const real *x, const real *rows, ptrdiff_t row, ptrdiff_t keys, ptrdiff_t D, real factor);
    void (*attention_row)(real *s, ptrdiff_t n, real *m, real *l);
    void (*attention_weights)(real *s, const real *lse, ptrdiff_t keys, ptrdiff_t queries);
    void (*attention_scores_backward)(real *dp, const real *p, const real *delta, real scale, ptrdiff_t keys, ptrdiff_t queries);
    void (*attention_row_backward)(real *p, real *ds, real lse, real delta, ptrdiff_t n);
    void (*attention_delta)(real *delta, const real *a, ptrdiff_t row_a, const real *b, ptrdiff_t row_b, ptrdiff_t queries, ptrdiff_t n);
    /* ---- conv.c: taps [k0, k1) of a piece's columns; rows of the product; the sum of a channel */
    void (*conv_columns)(real *columns, const real *x, const fsq_conv_call *call, const conv_piece *piece, ptrdiff_t k0, ptrdiff_t k1);
    void (*conv_add)(real *dx, const real *columns, const fsq_conv_call *call, const conv_piece *piece, ptrdiff_t k0, ptrdiff_t k1);
    void (*conv_store)(real *y, const real *product, const real *bias, const fsq_conv_call *call, const conv_piece *piece);
    void (*conv_load)(real *rows, const real *dy, const fsq_conv_call *call, const conv_piece *piece);
    real (*conv_sum)(const real *x, ptrdiff_t samples, ptrdiff_t apart, ptrdiff_t n);
    /* ---- max_pool.c: whole planes */
    void (*max_pool_forward)(real *y, int64_t *places, const real *x, const fsq_max_pool_call *call, ptrdiff_t planes);
    void (*max_pool_backward)(real *dx, const real *dy, const int64_t *places, const fsq_max_pool_call *call, ptrdiff_t planes);
    /* ---- batch_norm.c: channels [from, to) */
    void (*batch_norm_forward)(const batch_norm_call *call, ptrdiff_t from, ptrdiff_t to);
    void (*batch_norm_backward)(const batch_norm_call *call, ptrdiff_t from, ptrdiff_t to);
    /* ---- pointwise.c: n elements, one thread */
    void (*pointwise_forward[FSQ_LEAKY_RELU + 1])(real *y, const real *x, ptrdiff_t n, real parameter);
    void (*pointwise_backward[FSQ_LEAKY_RELU + 1])(real *dx, const real *saved, const real *dy, ptrdiff_t n, real parameter);
    /* ---- bias.c: n columns of rows that are dy_row apart */
    void (*bias_backward)(real *db, const real *dy, ptrdiff_t M, ptrdiff_t dy_row, ptrdiff_t n, int add);
    /* ---- softmax.c, cross_entropy.c: whole rows */
    void (*softmax_forward)(real *y, const real *x, ptrdiff_t rows, ptrdiff_t N);
    void (*softmax_backward)(real *dx, const real *y, const real *dy, ptrdiff_t rows, ptrdiff_t N);
    void (*log_softmax_forward)(real *y, const real *x, ptrdiff_t rows, ptrdiff_t N);
    void (*log_softmax_backward)(real *dx, const real *y, const real *dy, ptrdiff_t rows, ptrdiff_t N);
    void (*cross_entropy_forward)(real *losses, real *lse, const real *logits, const int64_t *targets, ptrdiff_t rows, ptrdiff_t V,
                                  int64_t ignore_index, double smoothing);
    void (*cross_entropy_backward)(real *dlogits, const real *lse, const real *logits, const int64_t *targets, const real *dlosses,
                                   ptrdiff_t dlosses_step, ptrdiff_t rows, ptrdiff_t V, int64_t ignore_index, double smoothing);
    /* ---- additive_attention.c: one row of the batch */
    real additive_range;                        /* elements of q and k beyond are far */
    void (*additive_beyond)(unsigned char *flags, const real *x, ptrdiff_t rows, ptrdiff_t D, real limit);
    void (*additive_panel)(real *panel, ptrdiff_t stride, const real *x, const unsigned char *far, ptrdiff_t rows, ptrdiff_t D);
    void (*additive_scores)(real *scores, ptrdiff_t scores_row, const real *q, ptrdiff_t q_stride, const real *k, ptrdiff_t k_stride, const real *u,
                            ptrdiff_t Tq, ptrdiff_t Tk, ptrdiff_t D);
    void (*additive_scores_far)(real *scores, const real *q, const real *k, const real *u, ptrdiff_t Tk, ptrdiff_t D);
    void (*additive_weights)(real *w, const unsigned char *visible, const real *bias, ptrdiff_t mask_key, ptrdiff_t n, ptrdiff_t Tk);
    void (*additive_weights_backward)(real *ds, const real *w, ptrdiff_t n, ptrdiff_t Tk);
    void (*additive_backward)(real *dq, real *dk, real *du, real *column, const real *q, ptrdiff_t q_stride, const real *k, ptrdiff_t k_stride,
                              const real *u, const real *ds, ptrdiff_t ds_row, ptrdiff_t Tq, ptrdiff_t Tk, ptrdiff_t D, ptrdiff_t from, ptrdiff_t to);
    void (*additive_backward_far)(real *dq, real *dk, real *du, const real *q, const real *k, const real *u, const real *ds, ptrdiff_t Tk, ptrdiff_t D,
                                  ptrdiff_t n, int add);
    /* ---- attention_decoder.c: one query, S keys */
    void (*decoder_backward_far)(real *dquery, real *dkeys, real *du, const real *dscores, const real *query, const real *keys, const real *u,
                                 ptrdiff_t S, ptrdiff_t A);
    void (*decoder_backward_near)(real *dquery, real *dkeys, real *du, const real *dscores, const real *query, const real *keys, ptrdiff_t stride,
                                  const real *u, ptrdiff_t S, ptrdiff_t A);
    void (*decoder_near_gradients)(real *dkeys, real *du, const real *panel, ptrdiff_t stride, const real *sums, const real *u, ptrdiff_t S, ptrdiff_t A);
    /* ---- embedding.c: backward for a part of the rows and columns of dweight */
    void (*embedding_forward)(real *y, const int64_t *ids, const real *weight, ptrdiff_t n, ptrdiff_t D);
    void (*embedding_backward)(real *dweight, const real *dy, const int64_t *ids, ptrdiff_t n, ptrdiff_t D, int64_t padding_idx,
                               ptrdiff_t row, ptrdiff_t row_end, ptrdiff_t column, ptrdiff_t column_end);
    /* ---- dropout.c: elements [first, first + n), first a multiple of 4 */
    void (*dropout)(real *y, const real *x, ptrdiff_t first, ptrdiff_t n, uint32_t threshold, real factor, uint64_t seed, uint32_t layer,
                    uint32_t call);
    /* ---- optim.c */
    double (*sum_squares)(const real *x, ptrdiff_t n);
    void (*scale)(real *x, ptrdiff_t n, real factor);
    void (*sgd)(real *w, real *velocity, const real *grad, ptrdiff_t n, const sgd_constants *constants);
    void (*adagrad)(real *w, real *sum, const real *grad, ptrdiff_t n, const adagrad_constants *constants);
    void (*rmsprop)(real *w, real *square, real *velocity, real *mean, const real *grad, ptrdiff_t n, const rmsprop_constants *constants);
    void (*adam)(real *w, real *m, real *v, const real *grad, ptrdiff_t n, const adam_constants *constants);
    /* ---- fingerprint.c */
    void (*fingerprint_chunk)(uint64_t hash[2], const void *data, size_t bytes, uint64_t index);
} FSQ_FN(kernels);

/* The tables that this build has, by fsq_isa; NULL where the build has none. */
extern const FSQ_FN(kernels) *const FSQ_FN(kernels_of)[FSQ_ISA_COUNT];

static inline const FSQ_FN(kernels) *FSQ_FN(kernels_now)(void) { return FSQ_FN(kernels_of)[fsq_isa_current]; }

#endif
