/* fastseq.h - the contract between the C kernels and whoever calls them.
 *
 * Conventions that hold for every entry point:
 *   - The caller owns every buffer, scratch included; nothing is allocated, printed or kept. Where an op needs scratch,
 *     fsq_<op>_work says how many bytes; `work` may be NULL when that is 0. Scratch holds nothing between calls.
 *   - Arguments come in the order outputs, cache, inputs, parameters, sizes, options. `cache` is what forward saves for
 *     backward; backward never changes it. Nothing that is const is written. Outputs do not overlap inputs except where said.
 *   - Arrays are dense, last axis contiguous, aligned for their type only. Sizes are in elements and at least 0; strides are
 *     in elements. The caller has checked shapes: these functions do not.
 *   - `threads` >= 1 is the most threads to use; an op takes fewer where its work does not pay for them, and results are the
 *     same bits for any number. fsq_<op>_work must be asked with the same `threads`.
 *   - Letters: T time, B batch, I input, H hidden, P projection, G gates, D directions, L layers, V vocabulary; M, N, K of a product.
 *
 * Every typed entry point exists as fsq_<op>_f32 and fsq_<op>_f64: the second half of this file is read once for each. */
#ifndef FASTSEQ_H
#define FASTSEQ_H

#include <stddef.h>
#include <stdint.h>

/* ---------------------------------------------------------------- process: instruction set and threads */

/* Chooses the instruction set by name (NULL: the best that this machine and its operating system support) and returns 0, or
 * -1 where the name is unknown to this build or not available on this machine; the choice is then unchanged. Not to be called while an op runs. */
int fsq_isa_select(const char *name);
/* The name in use: "portable", "avx2", "avx512" or "neon" (the portable kernels on arm64). */
const char *fsq_isa_name(void);
/* The i-th instruction set of this build that this machine can run, worst first; NULL past the end. */
const char *fsq_isa_available(int i);

/* Threads for this Python (C) thread's next calls: the thread's own limit if set, else the process's. */
int fsq_threads_get(void);
/* The process's number, honoured exactly, n >= 1: the most that a call uses; where other programs hold the cores, or the work is
 * small, it uses one. */
void fsq_threads_set(int n);
/* This thread's own number; 0 returns to the process's. Returns the previous one. */
int fsq_threads_set_local(int n);
/* What the process starts from: the least of affinity, cgroup quota (rounded up) and OMP_NUM_THREADS; FASTSEQ_NUM_THREADS
 * overrides all. At least 1. Without OpenMP always 1. */
int fsq_threads_default(void);
/* 1: ops use all their threads however small the work (for tests). Returns the previous setting. */
int fsq_threads_force(int on);
/* 1 where this build has OpenMP. */
int fsq_has_openmp(void);

/* ---------------------------------------------------------------- what both float types share */

/* y = f(x), element by element; the order of this list is part of the interface. */
typedef enum {
    FSQ_IDENTITY, FSQ_EXP, FSQ_LOG, FSQ_TANH, FSQ_SIGMOID, FSQ_RELU, FSQ_ERF, FSQ_GELU, FSQ_GELU_TANH, FSQ_SILU, FSQ_SOFTPLUS, FSQ_ELU, FSQ_LEAKY_RELU
} fsq_function;

/* The first position of an id outside [0, limit), or -1 where there is none. ids (n) */
ptrdiff_t fsq_ids_find_outside(const int64_t *ids, ptrdiff_t n, int64_t limit);

/* Four 32-bit words of Philox4x32-10 (Salmon et al. 2011) for a 64-bit key and a 128-bit counter. */
void fsq_philox(uint32_t out[4], uint64_t key, const uint32_t counter[4]);

/* A 128-bit fingerprint of `bytes` bytes (a multiple of 4), taken up into `state`: two calls that saw the same bytes in the
 * same order hold the same state; the chance that others do is about 2^-64. Not a cryptographic hash. */
void fsq_fingerprint(uint64_t state[2], const void *data, size_t bytes, int threads);

/* ---------------------------------------------------------------- recurrent layers: what both float types share
 * d = recurrent dropout's mask, m = zoneout's; s = sigmoid; (.) is left out between vectors.
 *   RNN         h~ = tanh or relu of (W x + b_ih + U (d h') + b_hh), h' = h_{t-1}
 *   LSTM        i, f, o = s, g = tanh of W x + b_ih + U (d h') + b_hh in the order i, f, g, o; c~ = f c' + i g; h~ = o tanh(c~);
 *               peepholes p: i and f see p c', o sees p c~; projection: h~ = W_hr (o tanh(c~))
 *   GRU         r, z = s(...); n = tanh(W_n x + b_in + r (U_n (d h') + b_hn)); h~ = z h' + (1 - z) n
 *   GRU_BEFORE  r, z the same; n = tanh(W_n x + b_in + U_n (r d h') + b_hn); h~ as above
 *   MUT1..3     r, z, n as GRU_BEFORE with b_ih alone, h~ = z n + (1 - z) h'; MUT1: no U_z, n = tanh(tanh(W_n x) + U_n (r d h') + b_n);
 *               MUT3: z sees U_z tanh(d h') (Jozefowicz et al. 2015)
 *   layer norm  (LSTM, GRU) W x and U (d h') are normalised over all their G H sums, gain and bias each, before biases are added;
 *               the LSTM's h~ = o tanh(norm(c~)). Variance + 1e-5.
 *   zoneout     last: c = m_c c' + (1 - m_c) c~, h = m_h h' + (1 - m_h) h~ (Krueger et al. 2017) */
typedef enum { FSQ_RNN_TANH, FSQ_RNN_RELU, FSQ_LSTM, FSQ_GRU, FSQ_GRU_BEFORE, FSQ_MUT1, FSQ_MUT2, FSQ_MUT3 } fsq_cell;

/* One layer's sizes and options: the same for its directions. */
typedef struct {
    fsq_cell cell;
    int layer_norm;
    ptrdiff_t T, B, I, H, P;                /* P: the size of h, which is H unless there is a projection */
    ptrdiff_t from, to;                     /* the steps of this call, 0 <= from <= to <= T. N = to - from; arrays with N hold just these steps */
    const int64_t *lengths;                 /* (B), each 0..T: the steps of a row; NULL: T */
    const unsigned char *reset;             /* (T, B): not 0 = no state crosses from t-1 to t or back; NULL: none */
    double recurrent_dropout, zoneout_h, zoneout_c;
    int draw;                               /* 1: masks are drawn (training); 0: no dropout, and m = p in zoneout */
} fsq_recurrent_call;

/* Arrays of the entry point's float type, C order; NULL for what the layer does not have. G = 1 (RNN), 4 (LSTM), 3. */
typedef struct {
    const void *w_ih, *w_hh, *b_ih, *b_hh;  /* (G H, I), (G H, P), (G H), (G H) */
    const void *w_hr, *w_ch;                /* (P, H); (3, H) in the order i, f, o */
    const void *ln_ih_weight, *ln_ih_bias, *ln_hh_weight, *ln_hh_bias;      /* (G H) */
    const void *ln_c_weight, *ln_c_bias;    /* (H) */
} fsq_recurrent_weights;

/* One direction of a layer. */
typedef struct {
    int reverse;                            /* 1: from each row's own end to its beginning */
    uint64_t key_dropout, key_zoneout_h, key_zoneout_c;    /* of Philox; the word of (t, b, unit u) has the counter (u / 4, t, b, 0), dropout's t = 0 */
    const void *packed;                     /* by fsq_recurrent_pack; backward reads the weights themselves */
    fsq_recurrent_weights weights;          /* forward reads all but w_ih, w_hh, w_hr and, without layer norm, biases of the cells from here */
    const void *x;                          /* in     (N, B, I) */
    const void *h_0, *c_0;                  /* in     (B, P), (B, H) or NULL = 0; c: LSTM only, here and below */
    void *y;                                /* out    (N, B, P), rows y_row >= P apart; backward reads it */
    ptrdiff_t y_row;
    void *h_n, *c_n;                        /* out    (B, P), (B, H): the state after each row's last step of this call; may be h_0, c_0 */
    void *cells;                            /* cache  (N, B, H) c_t; NULL where neither backward nor the caller wants it */
    void *cache;                            /* cache  (N, B, fsq_recurrent_cache_width); NULL for inference */
} fsq_recurrent_direction;

/* What backward takes and gives for one direction. In: NULL = 0; out: NULL = not wanted. */
typedef struct {
    const void *dy;                         /* in     as y, rows y_row apart */
    const void *dh_n, *dc_n, *dcells;       /* in     (B, P), (B, H), (N, B, H) */
    void *dx;                               /* out    (N, B, I); rows past a row's end are not written */
    void *dh_0, *dc_0;                      /* out    (B, P), (B, H), always wanted (dc_0: LSTM); may be dh_n, dc_n */
    void *dstates;                          /* out    (N, B, P) dL/dh_t by all its ways, as dx */
    int weights, accumulate;                /* 1: the gradients below are wanted; 1: they are added to what is there */
    void *dw_ih, *dw_hh, *db_ih, *db_hh;    /* out    as the weights, all or, with weights = 0, none */
    void *dw_hr, *dw_ch, *dln_ih_weight, *dln_ih_bias, *dln_hh_weight, *dln_hh_bias, *dln_c_weight, *dln_c_bias; /* out where the layer has them */
} fsq_recurrent_gradients;

/* Reals per (t, b) that backward needs beside y and c. */
ptrdiff_t fsq_recurrent_cache_width(const fsq_recurrent_call *call);

/* ---------------------------------------------------------------- attention decoder: what both float types share
 * Before step j the state s' = s_{j-1} of a row looks at the memory m_1 ... m_S of its row (Bahdanau et al. 2015):
 *   q = W_q s', or s' itself;  e_i = u . tanh(q + k_i) (additive), or scale (q . m_i)
 *   a = softmax over i < the memory's length of e;  c = sum_i a_i m_i
 *   s_j = cell(s', [x_j; c]), LSTM or GRU as beside fsq_cell;  o_j = tanh(W_out [s_j; c] + b_out)
 * A row of no memory has a = 0 and c = 0. Letters: S steps of the memory, M its size, A the size of a query.
 * N is the sum of the rows' lengths: what is kept for backward has one entry for each step that there is, time by time, within a time the
 * rows by falling length (equally long ones in the order of the batch). */
typedef struct {
    fsq_cell cell;                          /* FSQ_LSTM or FSQ_GRU */
    int additive, projects;                 /* the score; whether there is a W_q: else A = H */
    ptrdiff_t T, B, S, I, H, M, A;          /* not additive: A = M */
    double scale;
    const int64_t *lengths, *memory_lengths;    /* (B) each 0..T, 0..S; NULL: T, S */
} fsq_attention_decoder_call;

/* Arrays of the entry point's float type, C order. G = 4 (LSTM) or 3. */
typedef struct {
    const void *w_ih, *w_hh, *b_ih, *b_hh;  /* (G H, I + M), (G H, H), (G H), (G H) */
    const void *w_out, *b_out;              /* (H, H + M), (H) */
    const void *w_query, *u;                /* (A, H), (A) or NULL */
} fsq_attention_decoder_weights;

typedef struct {
    const void *packed;                     /* by fsq_attention_decoder_pack; backward reads the weights themselves */
    fsq_attention_decoder_weights weights;  /* forward reads b_out and u from here */
    const void *x, *keys, *memory;          /* in     (T, B, I), (B, S, A) additive only, (B, S, M) */
    const void *h_0, *c_0;                  /* in     (B, H) or NULL = 0; c: LSTM only, here and below */
    void *outputs, *h_n, *c_n;              /* out    (T, B, H), (B, H), (B, H): rows past a row's end of outputs are not written */
    void *a;                                /* out    (T, B, S) as outputs; 0 past the memory's length; backward reads it */
    void *both, *cells, *queries;           /* cache  (N, H + M) [s_j; c], (N, H), (N, A) with W_q: forward needs them itself */
    void *gates;                            /* cache  (N, 4 H) or NULL for inference */
} fsq_attention_decoder_arrays;

/* In: NULL = 0. Out: all wanted, but for what the call does not have. */
typedef struct {
    const void *doutputs, *dh_n, *dc_n, *da;        /* in     (T, B, H), (B, H), (B, H), (T, B, S) */
    void *dx, *dkeys, *dmemory, *dh_0, *dc_0;       /* out    as the inputs; rows of dx past a row's end are not written */
    void *dw_ih, *dw_hh, *db_ih, *db_hh, *dw_out, *db_out, *dw_query, *du;  /* out    as the weights */
} fsq_attention_decoder_gradients;

/* ---------------------------------------------------------------- attention: what both float types share */

/* Element (b, h, t, d) of an array (B, heads, T, D) is data[b batch + h head + t row + d], in elements of the entry point's type. */
typedef struct {
    void *data;                             /* const where the entry point says in */
    ptrdiff_t batch, head, row;
} fsq_attention_array;

/* One call's sizes and options. Query i stands at position i + offset and sees the keys j with j <= i + offset (causal),
 * |i + offset - j| < window (0: no window), j < key_lengths[b], and what the mask does not hide. */
typedef struct {
    ptrdiff_t B, heads, kv_heads;           /* kv_heads divides heads: head h of q reads head h / (heads / kv_heads) of k and v */
    ptrdiff_t Tq, Tk, D, Dv;
    double scale;
    int causal;
    ptrdiff_t offset, window;
    const int64_t *key_lengths;             /* (B), each 0..Tk; NULL: Tk */
    const void *mask;                       /* NULL: none; element (b, h, i, j) with the strides below, 0 for an axis that is broadcast */
    int mask_is_bool;                       /* 1: bytes, 0 = hidden; 0: the entry point's type, added to the scaled score, -inf = hidden */
    ptrdiff_t mask_batch, mask_head, mask_query, mask_key;
    double dropout;                         /* 0 <= dropout <= 1; a weight is kept where word j % 4 of Philox, `key`, counter */
    uint64_t key;                           /* (j / 4, i, b heads + h, 0), is at least dropout 2^32 */
    int tiles;                              /* 1: one query, too, takes the way of many: the same in forward and in backward */
} fsq_attention_call;

/* ---------------------------------------------------------------- convolution and pooling: what both float types share
 * One axis: out = floor((before + size + after - dilation (kernel - 1) - 1) / stride) + 1 positions, of which position p sees the elements
 * p stride - before + i dilation, i < kernel; elements outside x are zeros. `before` and out are given; `after` follows. */

/* A one-dimensional convolution has H = kernel_h = out_h = 1. */
typedef struct {
    ptrdiff_t N, groups, C, O;                          /* samples; groups; channels in and out of one group */
    ptrdiff_t H, W, kernel_h, kernel_w, stride_h, stride_w, dilation_h, dilation_w;
    ptrdiff_t top, left, out_h, out_w;                  /* rows and columns of zeros before x; the size of y */
} fsq_conv_call;

/* Elements outside the plane do not count; every window has one inside. */
typedef struct {
    ptrdiff_t H, W, kernel_h, kernel_w, stride_h, stride_w, padding_h, padding_w, dilation_h, dilation_w, out_h, out_w;
} fsq_max_pool_call;

#define FSQ_REAL float
#define FSQ_OP(name) name##_f32
#include "fastseq.h"
#undef FSQ_REAL
#undef FSQ_OP
#define FSQ_REAL double
#define FSQ_OP(name) name##_f64
#include "fastseq.h"
#undef FSQ_REAL
#undef FSQ_OP

#elif defined FSQ_REAL /* ================================================ read once for float, once for double */

/* ---------------------------------------------------------------- matmul
 * c (M, N) = f(op(a) (M, K) op(b) (K, N) + bias), or, with accumulate = 1, c + op(a) op(b).
 * Element (m, k) of op(a) is a[m a_row + k a_col], element (k, n) of op(b) is b[k b_row + n b_col]: any leading dimension, any
 * transpose, negative strides too. Element (m, n) of c is c[m c_row + n].
 * bias (N) or NULL. function: FSQ_IDENTITY, FSQ_TANH, FSQ_SIGMOID, FSQ_RELU or FSQ_GELU; with accumulate no bias and FSQ_IDENTITY.
 * packed: op(b) as fsq_matmul_pack wrote it, and b is not read; or NULL.
 * batch products at once: the e-th reads a + e a_batch, b + e b_batch and writes c + e c_batch (packed: batch 1 only).
 * Each element of c is one chain of multiply-adds with k ascending, whatever M, N, the strides and the threads. */
void FSQ_OP(fsq_matmul)(FSQ_REAL *c, const FSQ_REAL *a, const FSQ_REAL *b, const FSQ_REAL *packed, const FSQ_REAL *bias,
                        ptrdiff_t batch, ptrdiff_t M, ptrdiff_t N, ptrdiff_t K,
                        ptrdiff_t c_batch, ptrdiff_t c_row, ptrdiff_t a_batch, ptrdiff_t a_row, ptrdiff_t a_col,
                        ptrdiff_t b_batch, ptrdiff_t b_row, ptrdiff_t b_col,
                        int accumulate, fsq_function function, int threads, void *work);
size_t FSQ_OP(fsq_matmul_work)(ptrdiff_t M, ptrdiff_t N, ptrdiff_t K, int packed, int threads);
/* panels (fsq_matmul_packed_size reals, for the instruction set in use) from op(b) */
size_t FSQ_OP(fsq_matmul_packed_size)(ptrdiff_t N, ptrdiff_t K);
void FSQ_OP(fsq_matmul_pack)(FSQ_REAL *panels, const FSQ_REAL *b, ptrdiff_t N, ptrdiff_t K, ptrdiff_t b_row, ptrdiff_t b_col, int threads);

/* ---------------------------------------------------------------- recurrent: RNN, LSTM, GRU and MUT over a sequence
 * The equations stand beside fsq_cell. Denormals are flushed to zero inside (per worker, restored on return).
 *
 * recurrent_pack: packed (fsq_recurrent_packed_size reals, for the instruction set in use) from one direction's weights.
 * Of the call only cell, I, H, P and layer_norm are read.
 *
 * recurrent_forward: steps [from, to) of one layer, its D = 1 or 2 directions side by side, as fsq_recurrent_direction says.
 * The caller has filled y, cells and cache rows past a row's end with what it wants there: they are neither written nor read.
 * A row's y, h_n, c_n depend on that row of x, h_0, c_0 and on the weights only: the same bits in any batch, for any lengths of
 * other rows, and step by step.
 *
 * recurrent_backward: the same arguments as the forward call of these steps had, cache included, and, for each direction, the
 * upstream gradients and where the results go. dx of a row depends on that row only; every entry of a weight's gradient is one
 * chain of additions over the steps, last to first, and in a step over the rows (longest first), last to first, whatever the
 * threads; the chain goes on from what is there where accumulate is 1: calls on [k, T) and then on [0, k) add up to the bits of
 * one call on [0, T).
 *
 * recurrent_stack: L layers with one direction each, forwards in time, from the first up; each but the first reads as x the y of the
 * one below (y_row = P = its I). One step of a stream is a call with T = 1 in which h_n and c_n are h_0 and c_0 themselves. No cache. */
size_t FSQ_OP(fsq_recurrent_packed_size)(const fsq_recurrent_call *call);
void FSQ_OP(fsq_recurrent_pack)(FSQ_REAL *packed, const fsq_recurrent_call *call, const fsq_recurrent_weights *weights, int threads);
void FSQ_OP(fsq_recurrent_forward)(const fsq_recurrent_call *call, const fsq_recurrent_direction *directions, int D, int threads, void *work);
size_t FSQ_OP(fsq_recurrent_forward_work)(const fsq_recurrent_call *call, int D, int threads);
void FSQ_OP(fsq_recurrent_backward)(const fsq_recurrent_call *call, const fsq_recurrent_direction *directions,
                                    const fsq_recurrent_gradients *gradients, int D, int threads, void *work);
size_t FSQ_OP(fsq_recurrent_backward_work)(const fsq_recurrent_call *call, int D, int threads);
void FSQ_OP(fsq_recurrent_stack)(const fsq_recurrent_call *calls, const fsq_recurrent_direction *layers, int L, int threads, void *work);
size_t FSQ_OP(fsq_recurrent_stack_work)(const fsq_recurrent_call *calls, int L, int threads);

/* ---------------------------------------------------------------- attention_decoder: a target sequence in one call
 * The equations stand beside fsq_attention_decoder_call. Denormals are flushed to zero inside.
 *
 * pack: packed (packed_size reals, for the instruction set in use) from the weights. Of the call lengths, T, B and S are not read.
 *
 * forward: a row's results depend on its x, keys, memory and state and on the weights only: the same bits in any batch, for any
 * lengths of other rows, and step by step. What lies past the ends of x's and memory's rows is not read.
 *
 * backward: the same arguments as forward had, cache included. dx, dkeys, dmemory, dh_0 and dc_0 of a row depend on that row only; every
 * entry of a weight's gradient is one chain of additions over the N steps in their order, du's over each row's steps, last to first, and then
 * over the rows. */
size_t FSQ_OP(fsq_attention_decoder_packed_size)(const fsq_attention_decoder_call *call);
void FSQ_OP(fsq_attention_decoder_pack)(FSQ_REAL *packed, const fsq_attention_decoder_call *call, const fsq_attention_decoder_weights *weights, int threads);
void FSQ_OP(fsq_attention_decoder_forward)(const fsq_attention_decoder_call *call, const fsq_attention_decoder_arrays *arrays, int threads, void *work);
size_t FSQ_OP(fsq_attention_decoder_forward_work)(const fsq_attention_decoder_call *call, int threads);
void FSQ_OP(fsq_attention_decoder_backward)(const fsq_attention_decoder_call *call, const fsq_attention_decoder_arrays *arrays,
                                            const fsq_attention_decoder_gradients *gradients, int threads, void *work);
size_t FSQ_OP(fsq_attention_decoder_backward_work)(const fsq_attention_decoder_call *call, int threads);

/* ---------------------------------------------------------------- attention
 * w = softmax over j of (scale q_i . k_j + mask), hidden keys 0, a row that sees nothing all 0; y_i = sum_j w_ij m_ij v_j, m dropout's
 * mask (0 or 1 / (1 - p)). Scores live in tiles of scratch; no (Tq, Tk) matrix is stored but where the caller gives one.
 * What a hidden key and its value hold, NaN included, does not reach the queries that do not see them, in y, dq and weights.
 *
 * forward: y (B, heads, Tq, Dv) out; lse (B, heads, Tq), cache or NULL, = log(sum exp(score)), -inf where nothing is seen; weights
 * (B, heads, Tq, Tk) = w m out or NULL; q (B, heads, Tq, D), k (B, kv_heads, Tk, D), v (B, kv_heads, Tk, Dv) in.
 * A query's y, lse and weights depend on it and on its keys and values only. One query (Tq = 1) takes another order of additions, its keys
 * in fixed pieces which are merged in order, unless there is dropout, `tiles` is set, or weights are given.
 *
 * backward: dq, dk, dv out, arrays like q, k, v that do not overlap; dscores (B, heads, Tq, Tk) out or NULL, the gradient of
 * scale q k^T + mask; y, lse, q, k, v as in forward, dy like y; weights and dweights (B, heads, Tq, Tk), both or neither: forward's
 * weights, and the gradient that came to them. An entry of dq is one chain over the keys, of dk and dv over the heads that share them
 * and the queries, in ascending order. */
void FSQ_OP(fsq_attention_forward)(const fsq_attention_array *y, FSQ_REAL *lse, FSQ_REAL *weights, const fsq_attention_array *q,
                                   const fsq_attention_array *k, const fsq_attention_array *v, const fsq_attention_call *call, int threads, void *work);
size_t FSQ_OP(fsq_attention_forward_work)(const fsq_attention_call *call, int threads);
void FSQ_OP(fsq_attention_backward)(const fsq_attention_array *dq, const fsq_attention_array *dk, const fsq_attention_array *dv, FSQ_REAL *dscores,
                                    const fsq_attention_array *q, const fsq_attention_array *k, const fsq_attention_array *v,
                                    const fsq_attention_array *y, const FSQ_REAL *lse, const fsq_attention_array *dy, const FSQ_REAL *weights,
                                    const FSQ_REAL *dweights, const fsq_attention_call *call, int threads, void *work);
size_t FSQ_OP(fsq_attention_backward_work)(const fsq_attention_call *call, int threads);

/* ---------------------------------------------------------------- conv
 * y[n, g O + o, p] = bias[g O + o] + sum over c, i, j of weight[g O + o, c, i, j] x[n, g C + c, what p sees at (i, j)].
 * x (N, groups C, H, W), weight (groups O, C, kernel_h, kernel_w), bias (groups O) or NULL, y (N, groups O, out_h, out_w).
 * An element of y is one chain of multiply-adds over (c, i, j), ascending, and the bias after it; a sample's y depends on it and the
 * parameters only. Backward: dx, dweight, dbias, NULL: not wanted. A sample's dx depends on its dy and the weights only: each output channel's
 * share is added up first, then the taps. An entry of dweight is one chain over samples and positions.
 * work: fsq_conv_work bytes for either, bounded whatever the size of the images. */
void FSQ_OP(fsq_conv_forward)(FSQ_REAL *y, const FSQ_REAL *x, const FSQ_REAL *weight, const FSQ_REAL *bias, const fsq_conv_call *call, int threads,
                              void *work);
void FSQ_OP(fsq_conv_backward)(FSQ_REAL *dx, FSQ_REAL *dweight, FSQ_REAL *dbias, const FSQ_REAL *dy, const FSQ_REAL *x, const FSQ_REAL *weight,
                               const fsq_conv_call *call, int threads, void *work);
size_t FSQ_OP(fsq_conv_work)(const fsq_conv_call *call, int threads);

/* ---------------------------------------------------------------- max_pool
 * y (planes, out_h, out_w): the greatest element of each window of x (planes, H, W), NaN if it has one; places, cache, like y: where it
 * stands in its plane, the first of equal ones. Backward: dx = the sum of dy over the windows whose greatest element this is. */
void FSQ_OP(fsq_max_pool_forward)(FSQ_REAL *y, int64_t *places, const FSQ_REAL *x, ptrdiff_t planes, const fsq_max_pool_call *call, int threads);
void FSQ_OP(fsq_max_pool_backward)(FSQ_REAL *dx, const FSQ_REAL *dy, const int64_t *places, ptrdiff_t planes, const fsq_max_pool_call *call,
                                   int threads);

/* ---------------------------------------------------------------- batch_norm
 * y = weight (x - mean) / sqrt(variance + eps) + bias for each channel of x (N, C, L); weight (C) and bias (C) may be NULL. mean (C) and
 * variance (C) are those of the channel over samples and places, out and cache; given = 1: in. y may be x.
 * Backward: dx, dweight, dbias; NULL: not wanted. given = 1: mean and variance are constants. dx may be dy, not x. */
void FSQ_OP(fsq_batch_norm_forward)(FSQ_REAL *y, FSQ_REAL *mean, FSQ_REAL *variance, const FSQ_REAL *x, const FSQ_REAL *weight, const FSQ_REAL *bias,
                                    ptrdiff_t N, ptrdiff_t C, ptrdiff_t L, double eps, int given, int threads);
void FSQ_OP(fsq_batch_norm_backward)(FSQ_REAL *dx, FSQ_REAL *dweight, FSQ_REAL *dbias, const FSQ_REAL *dy, const FSQ_REAL *x, const FSQ_REAL *mean,
                                     const FSQ_REAL *variance, const FSQ_REAL *weight, ptrdiff_t N, ptrdiff_t C, ptrdiff_t L, double eps, int given,
                                     int threads);

/* ---------------------------------------------------------------- pointwise
 * y (n) = f(x (n)); y may be x. FSQ_GELU: x Phi(x); FSQ_GELU_TANH: x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))) / 2;
 * FSQ_SILU: x sigmoid(x); FSQ_SOFTPLUS: log(1 + exp(x)); below 0 FSQ_ELU is p (exp(x) - 1) and FSQ_LEAKY_RELU p x, above both are x;
 * p = `parameter`, which the others do not read.
 * Backward: dx = dy f'(x), from `saved` = y, but for FSQ_LOG, FSQ_ERF and those after it saved = x; dx may be dy. At a kink: the slope below. */
void FSQ_OP(fsq_pointwise_forward)(FSQ_REAL *y, const FSQ_REAL *x, ptrdiff_t n, fsq_function function, double parameter, int threads);
void FSQ_OP(fsq_pointwise_backward)(FSQ_REAL *dx, const FSQ_REAL *saved, const FSQ_REAL *dy, ptrdiff_t n, fsq_function function, double parameter,
                                    int threads);

/* ---------------------------------------------------------------- bias (its forward is matmul's epilogue)
 * db (N) = the sum over the rows of dy (M, N), first row to last. */
void FSQ_OP(fsq_bias_backward)(FSQ_REAL *db, const FSQ_REAL *dy, ptrdiff_t M, ptrdiff_t N, int threads);

/* ---------------------------------------------------------------- softmax over the last axis
 * y (M, N) = exp(x - max) / sum; a row of all -inf gives zeros; y may be x. dx = y (dy - sum(y dy)); dx may be dy.
 * log_softmax: y = x - max - log(sum); a row of all -inf stays what it is. dx = dy - exp(y) sum(dy). */
void FSQ_OP(fsq_softmax_forward)(FSQ_REAL *y, const FSQ_REAL *x, ptrdiff_t M, ptrdiff_t N, int threads);
void FSQ_OP(fsq_softmax_backward)(FSQ_REAL *dx, const FSQ_REAL *y, const FSQ_REAL *dy, ptrdiff_t M, ptrdiff_t N, int threads);
void FSQ_OP(fsq_log_softmax_forward)(FSQ_REAL *y, const FSQ_REAL *x, ptrdiff_t M, ptrdiff_t N, int threads);
void FSQ_OP(fsq_log_softmax_backward)(FSQ_REAL *dx, const FSQ_REAL *y, const FSQ_REAL *dy, ptrdiff_t M, ptrdiff_t N, int threads);

/* ---------------------------------------------------------------- layer_norm over the last axis, with the residual before it
 * s (M, N) = x + residual, y (M, N) = weight (s - mean) rstd + bias, rstd = 1 / sqrt(mean((s - mean)^2) + eps); mean and rstd (M) cache.
 * centred = 0 is RMS norm: the mean counts as 0, and `mean` is NULL. residual and s are NULL together: then s is x. weight (N) and
 * bias (N) may be NULL. y may be x or residual, and s may be either.
 * Backward: dx (M, N), the gradient of x and of the residual alike, dweight (N), dbias (N); NULL: not wanted. dy (M, N) is the gradient of
 * y, ds (M, N) of s or NULL = 0. A row of y, s and dx depends on that row only. dweight and dbias are sums over chunks of rows, whose
 * number follows from M alone, first to last. work: fsq_layer_norm_backward_work bytes, aligned for FSQ_REAL. */
void FSQ_OP(fsq_layer_norm_forward)(FSQ_REAL *y, FSQ_REAL *s, FSQ_REAL *mean, FSQ_REAL *rstd, const FSQ_REAL *x, const FSQ_REAL *residual,
                                    const FSQ_REAL *weight, const FSQ_REAL *bias, ptrdiff_t M, ptrdiff_t N, double eps, int centred, int threads);
void FSQ_OP(fsq_layer_norm_backward)(FSQ_REAL *dx, FSQ_REAL *dweight, FSQ_REAL *dbias, const FSQ_REAL *dy, const FSQ_REAL *ds, const FSQ_REAL *s,
                                     const FSQ_REAL *mean, const FSQ_REAL *rstd, const FSQ_REAL *weight, ptrdiff_t M, ptrdiff_t N,
                                     int centred, int threads, void *work);
size_t FSQ_OP(fsq_layer_norm_backward_work)(ptrdiff_t M, ptrdiff_t N);

/* ---------------------------------------------------------------- cross_entropy: softmax and negative log-likelihood in one pass
 * losses (N) = log(sum exp(logits)) - sum_v q_v logits_v with q = (1 - smoothing) onehot(target) + smoothing / V;
 * lse (N) cache = log(sum exp(logits)). Rows whose target is ignore_index give 0. logits (N, V), targets (N) checked ids.
 * Backward: dlogits = (exp(logits - lse) - q) dlosses[n dlosses_step]; zeros for ignored rows. dlosses_step is 0 or 1. */
void FSQ_OP(fsq_cross_entropy_forward)(FSQ_REAL *losses, FSQ_REAL *lse, const FSQ_REAL *logits, const int64_t *targets,
                                       ptrdiff_t N, ptrdiff_t V, int64_t ignore_index, double smoothing, int threads);
void FSQ_OP(fsq_cross_entropy_backward)(FSQ_REAL *dlogits, const FSQ_REAL *lse, const FSQ_REAL *logits, const int64_t *targets, const FSQ_REAL *dlosses,
                                        ptrdiff_t dlosses_step, ptrdiff_t N, ptrdiff_t V, int64_t ignore_index, double smoothing, int threads);

/* ---------------------------------------------------------------- linear_cross_entropy: cross_entropy of logits = x W^T + bias
 * losses, lse (cache), targets, ignore_index, smoothing, dlosses as in cross_entropy; x (N, H), weight (V, H), bias (V) or NULL. Of the
 * logits only a chunk of rows exists at a time, in scratch: about 4 MB, or 96 rows where that is more. Backward makes them again:
 * dx (N, H), dweight (V, H), dbias (V); NULL: not wanted. A row of losses, lse and dx depends on that row and the parameters only; every
 * element of dweight and dbias is one chain of additions over the rows, first to last. */
void FSQ_OP(fsq_linear_cross_entropy_forward)(FSQ_REAL *losses, FSQ_REAL *lse, const FSQ_REAL *x, const FSQ_REAL *weight, const FSQ_REAL *bias,
                                              const int64_t *targets, ptrdiff_t N, ptrdiff_t H, ptrdiff_t V, int64_t ignore_index,
                                              double smoothing, int threads, void *work);
size_t FSQ_OP(fsq_linear_cross_entropy_forward_work)(ptrdiff_t N, ptrdiff_t H, ptrdiff_t V, int threads);
void FSQ_OP(fsq_linear_cross_entropy_backward)(FSQ_REAL *dx, FSQ_REAL *dweight, FSQ_REAL *dbias, const FSQ_REAL *lse, const FSQ_REAL *x,
                                               const FSQ_REAL *weight, const FSQ_REAL *bias, const int64_t *targets, const FSQ_REAL *dlosses,
                                               ptrdiff_t dlosses_step, ptrdiff_t N, ptrdiff_t H, ptrdiff_t V, int64_t ignore_index,
                                               double smoothing, int threads, void *work);
size_t FSQ_OP(fsq_linear_cross_entropy_backward_work)(ptrdiff_t N, ptrdiff_t H, ptrdiff_t V, int threads);

/* ---------------------------------------------------------------- additive_attention (Bahdanau et al. 2015)
 * s_ij = sum_d u_d tanh(q_id + k_jd) + bias_ij, w_i = softmax of s_i over the keys j that query i sees, y_i = sum_j w_ij v_j, for each row of
 * the batch. q (B, Tq, D), k (B, Tk, D), v (B, Tk, Dv), u (D), y (B, Tq, Dv), weights (B, Tq, Tk).
 * lengths (B): the keys of a row, each 0..Tk; NULL: Tk. visible, bias: NULL, or element (b, i, j) at [b mask_batch + i mask_query + j mask_key];
 * a key is seen where it is within the length, visible is not 0 and bias is not -inf. A query that sees none has y = 0 and weights = 0. What
 * a hidden key holds, in k or in v, is never in the result.
 * weights: out, and cache for backward; NULL where nobody wants them. y and weights of a query depend on it, its row's keys and u only.
 *
 * Backward: dy, dweights: NULL = 0. A weight of 0 passes no gradient on to q, k, u and scores. Out: dq, dk, dv, du as the inputs, and
 * dscores (B, Tq, Tk) = dL/ds = dL/dbias. dq_i adds up over j, dk_j over i, dv_j over i, all ascending (pairs with an element of q or k beyond
 * 20, in float64 170, after the others); du over the rows of the batch, ascending. */
void FSQ_OP(fsq_additive_attention_forward)(FSQ_REAL *y, FSQ_REAL *weights, const FSQ_REAL *q, const FSQ_REAL *k, const FSQ_REAL *v, const FSQ_REAL *u,
                                            const int64_t *lengths, const unsigned char *visible, const FSQ_REAL *bias,
                                            ptrdiff_t mask_batch, ptrdiff_t mask_query, ptrdiff_t mask_key,
                                            ptrdiff_t B, ptrdiff_t Tq, ptrdiff_t Tk, ptrdiff_t D, ptrdiff_t Dv, int threads, void *work);
size_t FSQ_OP(fsq_additive_attention_forward_work)(ptrdiff_t Tq, ptrdiff_t Tk, ptrdiff_t D, ptrdiff_t Dv, int threads);
void FSQ_OP(fsq_additive_attention_backward)(FSQ_REAL *dq, FSQ_REAL *dk, FSQ_REAL *dv, FSQ_REAL *du, FSQ_REAL *dscores, const FSQ_REAL *weights,
                                             const FSQ_REAL *q, const FSQ_REAL *k, const FSQ_REAL *v, const FSQ_REAL *u, const FSQ_REAL *dy,
                                             const FSQ_REAL *dweights, const int64_t *lengths,
                                             ptrdiff_t B, ptrdiff_t Tq, ptrdiff_t Tk, ptrdiff_t D, ptrdiff_t Dv, int threads, void *work);
size_t FSQ_OP(fsq_additive_attention_backward_work)(ptrdiff_t B, ptrdiff_t Tq, ptrdiff_t Tk, ptrdiff_t D, ptrdiff_t Dv, int threads);

/* ---------------------------------------------------------------- embedding
 * y (n, D) = weight[ids]; ids (n) checked, weight (V, D).
 * Backward: dweight (V, D) = the sum over n of dy (n, D) at ids[n], first to last; rows of no id, and padding_idx (-1: none), are zero.
 * All of dweight is written. */
void FSQ_OP(fsq_embedding_forward)(FSQ_REAL *y, const int64_t *ids, const FSQ_REAL *weight, ptrdiff_t n, ptrdiff_t V, ptrdiff_t D, int threads);
void FSQ_OP(fsq_embedding_backward)(FSQ_REAL *dweight, const FSQ_REAL *dy, const int64_t *ids,
                                    ptrdiff_t n, ptrdiff_t V, ptrdiff_t D, int64_t padding_idx, int threads);

/* ---------------------------------------------------------------- dropout
 * y (n) = x m / (1 - p), m ~ Bernoulli(1 - p): element i is kept where word i % 4 of Philox, key `seed`, counter
 * (low and high half of i / 4, call, layer), is at least p 2^32. Backward is the same call on dy. 0 <= p <= 1 (p = 1: zeros). y may be x. */
void FSQ_OP(fsq_dropout)(FSQ_REAL *y, const FSQ_REAL *x, ptrdiff_t n, double p, uint64_t seed, uint32_t layer, uint32_t call, int threads);

/* ---------------------------------------------------------------- optim
 * sum_squares: the sum of x_i^2 (n) in double, in chunks whose size follows from n: the same bits for any threads. scale: x *= factor.
 * The updates change w and their state in place, with g = grad + weight_decay w of n elements. Where rows is not NULL, grad (n / width, width)
 * belongs to those rows of the tables w and state (V, width), each at most once, checked: the other rows stay as they are, unread.
 * sgd: with momentum != 0 (velocity not NULL): velocity = momentum velocity + g (first: velocity = g),
 *   g = nesterov ? g + momentum velocity : velocity; w -= lr g.
 * adagrad (Duchi, Hazan, Singer 2011): sum += g^2; w -= lr g / (sqrt(sum) + eps).
 * rmsprop (Tieleman & Hinton 2012): square = alpha square + (1 - alpha) g^2; s = square; with mean not NULL (Graves 2013):
 *   mean = alpha mean + (1 - alpha) g, s = max(square - mean^2, 0); g = g / (sqrt(s) + eps);
 *   with momentum != 0 (velocity not NULL): g = velocity = momentum velocity + g; w -= lr g.
 * adam (Kingma & Ba 2015; AdamW, Loshchilov & Hutter 2019, with decoupled = 1): step counts from 1.
 *   m = beta1 m + (1 - beta1) g; v = beta2 v + (1 - beta2) g^2; w -= lr / (1 - beta1^step) m / (sqrt(v / (1 - beta2^step)) + eps);
 *   decoupled: g = grad, and w is first multiplied by 1 - lr weight_decay. */
double FSQ_OP(fsq_sum_squares)(const FSQ_REAL *x, ptrdiff_t n, int threads);
void FSQ_OP(fsq_scale)(FSQ_REAL *x, ptrdiff_t n, double factor, int threads);
void FSQ_OP(fsq_sgd)(FSQ_REAL *w, FSQ_REAL *velocity, const FSQ_REAL *grad, const int64_t *rows, ptrdiff_t n, ptrdiff_t width,
                     double lr, double momentum, int nesterov, int first, double weight_decay, int threads);
void FSQ_OP(fsq_adagrad)(FSQ_REAL *w, FSQ_REAL *sum, const FSQ_REAL *grad, const int64_t *rows, ptrdiff_t n, ptrdiff_t width,
                         double lr, double eps, double weight_decay, int threads);
void FSQ_OP(fsq_rmsprop)(FSQ_REAL *w, FSQ_REAL *square, FSQ_REAL *velocity, FSQ_REAL *mean, const FSQ_REAL *grad, ptrdiff_t n,
                         double lr, double alpha, double eps, double momentum, double weight_decay, int threads);
void FSQ_OP(fsq_adam)(FSQ_REAL *w, FSQ_REAL *m, FSQ_REAL *v, const FSQ_REAL *grad, const int64_t *rows, ptrdiff_t n, ptrdiff_t width,
                      double lr, double beta1, double beta2, double eps, double weight_decay, int decoupled, int64_t step, int threads);

#endif
