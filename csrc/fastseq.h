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
 *   - Letters: T time, B batch, I input, H hidden, G gates, V vocabulary; M, N, K of a product.
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
/* The process's number, honoured exactly. n >= 1. */
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
typedef enum { FSQ_IDENTITY, FSQ_EXP, FSQ_LOG, FSQ_TANH, FSQ_SIGMOID, FSQ_RELU } fsq_function;

/* The first position of an id outside [0, limit), or -1 where there is none. ids (n) */
ptrdiff_t fsq_ids_find_outside(const int64_t *ids, ptrdiff_t n, int64_t limit);

/* Four 32-bit words of Philox4x32-10 (Salmon et al. 2011) for a 64-bit key and a 128-bit counter. */
void fsq_philox(uint32_t out[4], uint64_t key, const uint32_t counter[4]);

/* A 128-bit fingerprint of `bytes` bytes (a multiple of 4), taken up into `state`: two calls that saw the same bytes in the
 * same order hold the same state; the chance that others do is about 2^-64. Not a cryptographic hash. */
void fsq_fingerprint(uint64_t state[2], const void *data, size_t bytes, int threads);

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
 * bias (N) or NULL. function: FSQ_IDENTITY, FSQ_TANH, FSQ_SIGMOID or FSQ_RELU; with accumulate no bias and FSQ_IDENTITY.
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

/* ---------------------------------------------------------------- lstm
 * i, f, o = sigmoid, g = tanh of (W_ih x_t + b_ih + W_hh h_{t-1} + b_hh); c_t = f c_{t-1} + i g; h_t = o tanh(c_t).
 * Denormals are flushed to zero inside (per worker, restored on return).
 *
 * lstm_pack: packed (fsq_lstm_packed_size reals, for the instruction set in use) from w_ih (4H, I), w_hh (4H, H), gates in
 * the order i, f, g, o; b_ih, b_hh (4H) or NULL = 0.
 *
 * lstm_forward:
 *   y (T, B, H)       out    h_t
 *   h_n, c_n (B, H)   out    the state after the last step; may be h_0 and c_0 themselves
 *   gates (T, B, 4, H) cache i, f, g, o; NULL for inference
 *   cells (T, B, H)   cache  c_t; NULL exactly where gates is
 *   x (T, B, I); h_0, c_0 (B, H) or NULL = zeros
 * Row b of y, h_n and c_n depends on row b of x, h_0, c_0 and on the weights only: the same bits in any batch, and step by step. */
size_t FSQ_OP(fsq_lstm_packed_size)(ptrdiff_t I, ptrdiff_t H);
void FSQ_OP(fsq_lstm_pack)(FSQ_REAL *packed, const FSQ_REAL *w_ih, const FSQ_REAL *w_hh, const FSQ_REAL *b_ih, const FSQ_REAL *b_hh,
                           ptrdiff_t I, ptrdiff_t H, int threads);
void FSQ_OP(fsq_lstm_forward)(FSQ_REAL *y, FSQ_REAL *h_n, FSQ_REAL *c_n, FSQ_REAL *gates, FSQ_REAL *cells,
                              const FSQ_REAL *x, const FSQ_REAL *h_0, const FSQ_REAL *c_0, const FSQ_REAL *packed,
                              ptrdiff_t T, ptrdiff_t B, ptrdiff_t I, ptrdiff_t H, int threads, void *work);
size_t FSQ_OP(fsq_lstm_forward_work)(ptrdiff_t T, ptrdiff_t B, ptrdiff_t I, ptrdiff_t H, int threads);
/* lstm_step: one step of a stream. h, c (B, H) are read and replaced; x (B, I). The same bits as lstm_forward. */
void FSQ_OP(fsq_lstm_step)(FSQ_REAL *h, FSQ_REAL *c, const FSQ_REAL *x, const FSQ_REAL *packed,
                           ptrdiff_t B, ptrdiff_t I, ptrdiff_t H, int threads, void *work);
size_t FSQ_OP(fsq_lstm_step_work)(ptrdiff_t B, ptrdiff_t I, ptrdiff_t H, int threads);
/* lstm_backward: given dy (T, B, H) = dL/dy and dh_n, dc_n (B, H), each or NULL = 0,
 *   dx (T, B, I) out, or NULL where it is not wanted
 *   dh_0, dc_0 (B, H) out
 *   dw_ih (4H, I), dw_hh (4H, H), db (4H) out: the gradient of b_ih and of b_hh alike; all three or none (NULL)
 * from the cache gates, cells and y of the forward call and its inputs. dx of a row depends on that row only; every entry of
 * dw is one chain of additions over (t, b), descending, whatever the threads. */
void FSQ_OP(fsq_lstm_backward)(FSQ_REAL *dx, FSQ_REAL *dh_0, FSQ_REAL *dc_0, FSQ_REAL *dw_ih, FSQ_REAL *dw_hh, FSQ_REAL *db,
                               const FSQ_REAL *gates, const FSQ_REAL *cells, const FSQ_REAL *y,
                               const FSQ_REAL *dy, const FSQ_REAL *dh_n, const FSQ_REAL *dc_n,
                               const FSQ_REAL *x, const FSQ_REAL *h_0, const FSQ_REAL *c_0, const FSQ_REAL *w_ih, const FSQ_REAL *w_hh,
                               ptrdiff_t T, ptrdiff_t B, ptrdiff_t I, ptrdiff_t H, int threads, void *work);
size_t FSQ_OP(fsq_lstm_backward_work)(ptrdiff_t T, ptrdiff_t B, ptrdiff_t I, ptrdiff_t H, int threads);

/* ---------------------------------------------------------------- pointwise
 * y (n) = f(x (n)); y may be x. Backward: dx = dy f'(x), from `saved` = y, but for FSQ_LOG saved = x; dx may be dy. */
void FSQ_OP(fsq_pointwise_forward)(FSQ_REAL *y, const FSQ_REAL *x, ptrdiff_t n, fsq_function function, int threads);
void FSQ_OP(fsq_pointwise_backward)(FSQ_REAL *dx, const FSQ_REAL *saved, const FSQ_REAL *dy, ptrdiff_t n, fsq_function function, int threads);

/* ---------------------------------------------------------------- bias (its forward is matmul's epilogue)
 * db (N) = the sum over the rows of dy (M, N), first row to last. */
void FSQ_OP(fsq_bias_backward)(FSQ_REAL *db, const FSQ_REAL *dy, ptrdiff_t M, ptrdiff_t N, int threads);

/* ---------------------------------------------------------------- softmax over the last axis
 * y (M, N) = exp(x - max) / sum; a row of all -inf gives zeros; y may be x. dx = y (dy - sum(y dy)); dx may be dy. */
void FSQ_OP(fsq_softmax_forward)(FSQ_REAL *y, const FSQ_REAL *x, ptrdiff_t M, ptrdiff_t N, int threads);
void FSQ_OP(fsq_softmax_backward)(FSQ_REAL *dx, const FSQ_REAL *y, const FSQ_REAL *dy, ptrdiff_t M, ptrdiff_t N, int threads);

/* ---------------------------------------------------------------- cross_entropy: softmax and negative log-likelihood in one pass
 * losses (N) = log(sum exp(logits)) - sum_v q_v logits_v with q = (1 - smoothing) onehot(target) + smoothing / V;
 * lse (N) cache = log(sum exp(logits)). Rows whose target is ignore_index give 0. logits (N, V), targets (N) checked ids.
 * Backward: dlogits = (exp(logits - lse) - q) dlosses[n dlosses_step]; zeros for ignored rows. dlosses_step is 0 or 1. */
void FSQ_OP(fsq_cross_entropy_forward)(FSQ_REAL *losses, FSQ_REAL *lse, const FSQ_REAL *logits, const int64_t *targets,
                                       ptrdiff_t N, ptrdiff_t V, int64_t ignore_index, double smoothing, int threads);
void FSQ_OP(fsq_cross_entropy_backward)(FSQ_REAL *dlogits, const FSQ_REAL *lse, const FSQ_REAL *logits, const int64_t *targets, const FSQ_REAL *dlosses,
                                        ptrdiff_t dlosses_step, ptrdiff_t N, ptrdiff_t V, int64_t ignore_index, double smoothing, int threads);

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
 * sgd: g = grad + weight_decay w; with momentum != 0 (velocity not NULL): velocity = momentum velocity + g (first: velocity = g),
 *   g = nesterov ? g + momentum velocity : velocity; w -= lr g.
 * adam (Kingma & Ba 2015; AdamW, Loshchilov & Hutter 2019, with decoupled = 1): step counts from 1.
 *   m = beta1 m + (1 - beta1) g; v = beta2 v + (1 - beta2) g^2; w -= lr / (1 - beta1^step) m / (sqrt(v / (1 - beta2^step)) + eps),
 *   with g = grad + weight_decay w, or, decoupled, w first multiplied by 1 - lr weight_decay. */
double FSQ_OP(fsq_sum_squares)(const FSQ_REAL *x, ptrdiff_t n, int threads);
void FSQ_OP(fsq_scale)(FSQ_REAL *x, ptrdiff_t n, double factor, int threads);
void FSQ_OP(fsq_sgd)(FSQ_REAL *w, FSQ_REAL *velocity, const FSQ_REAL *grad, ptrdiff_t n,
                     double lr, double momentum, int nesterov, int first, double weight_decay, int threads);
void FSQ_OP(fsq_adam)(FSQ_REAL *w, FSQ_REAL *m, FSQ_REAL *v, const FSQ_REAL *grad, ptrdiff_t n,
                      double lr, double beta1, double beta2, double eps, double weight_decay, int decoupled, int64_t step, int threads);

#endif
