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

/* One time step of an LSTM for `rows` batch rows: what the tiles read and write. Dense: x (rows, I), h, c (rows, H), gates (rows, 4, H). */
typedef struct {
    ptrdiff_t rows, I, H;
    const real *x;                              /* or, where sums is not NULL, not read: */
    const real *sums;                           /* bias + input product, row r, unit block j at sums + r sums_row + j lstm_cols */
    ptrdiff_t sums_row;
    const real *h_before, *c_before;
    real *h, *c, *gates;                        /* gates may be NULL; c may be c_before */
    int fetch_ahead;                            /* the weights do not stay in L2: fetch the next block's while this one is at work */
} lstm_forward_step;

/* The same step backwards. Dense: gates, dgates (rows, 4, H), the others (rows, H). */
typedef struct {
    ptrdiff_t rows, H;
    const real *gates, *c, *c_before, *dy, *dh; /* c_before and dy may be NULL = 0 */
    real *dc, *dgates;
} lstm_backward_step;

/* What stays the same over all elements of an update (fastseq.h has the equations). */
typedef struct { real lr, momentum, weight_decay; int nesterov, first; } sgd_constants;
/* other = 1 - beta; rate = lr / (1 - beta1^step); correction = 1 / (1 - beta2^step); keep = 1 or, decoupled, 1 - lr weight_decay */
typedef struct { real beta1, other1, beta2, other2, rate, correction, eps, weight_decay, keep; } adam_constants;

typedef struct FSQ_FN(kernels) {
    int lanes;                                  /* VL */
    double flops_per_ns;                        /* of the register tile on one core, roughly: for the choice of threads */
    /* ---- gemm.c */
    int gemm_rows, gemm_cols;                   /* the register tile */
    void (*gemm_block)(real *c, ptrdiff_t c_row, const real *a, ptrdiff_t a_row, ptrdiff_t a_k, int packed_a, const real *b, ptrdiff_t b_k,
                       ptrdiff_t b_panel, ptrdiff_t M, ptrdiff_t n, ptrdiff_t K, int add, const real *bias, fsq_function function);
    void (*gemm_pack_a)(real *packed, const real *a, ptrdiff_t a_row, ptrdiff_t a_k, ptrdiff_t M, ptrdiff_t K);
    void (*gemm_pack_b)(real *panel, const real *b, ptrdiff_t b_row, ptrdiff_t b_col, ptrdiff_t n, ptrdiff_t K);
    /* ---- lstm.c */
    int lstm_cols;
    void (*lstm_forward_blocks)(const lstm_forward_step *s, const real *packed, ptrdiff_t from, ptrdiff_t to, int backwards);
    void (*lstm_input_blocks)(real *sums, ptrdiff_t sums_row, const real *x, const real *packed, ptrdiff_t rows, ptrdiff_t I, ptrdiff_t H,
                              ptrdiff_t from, ptrdiff_t to);
    void (*lstm_pack_blocks)(real *packed, const real *w_ih, const real *w_hh, const real *b_ih, const real *b_hh, ptrdiff_t I, ptrdiff_t H,
                             ptrdiff_t from, ptrdiff_t to);
    void (*lstm_backward_units)(const lstm_backward_step *s, ptrdiff_t from, ptrdiff_t to);
    /* ---- pointwise.c: n elements, one thread */
    void (*pointwise_forward[FSQ_RELU + 1])(real *y, const real *x, ptrdiff_t n);
    void (*pointwise_backward[FSQ_RELU + 1])(real *dx, const real *saved, const real *dy, ptrdiff_t n);
    /* ---- bias.c: n columns of rows that are dy_row apart */
    void (*bias_backward)(real *db, const real *dy, ptrdiff_t M, ptrdiff_t dy_row, ptrdiff_t n);
    /* ---- softmax.c, cross_entropy.c: whole rows */
    void (*softmax_forward)(real *y, const real *x, ptrdiff_t rows, ptrdiff_t N);
    void (*softmax_backward)(real *dx, const real *y, const real *dy, ptrdiff_t rows, ptrdiff_t N);
    void (*cross_entropy_forward)(real *losses, real *lse, const real *logits, const int64_t *targets, ptrdiff_t rows, ptrdiff_t V,
                                  int64_t ignore_index, double smoothing);
    void (*cross_entropy_backward)(real *dlogits, const real *lse, const real *logits, const int64_t *targets, const real *dlosses,
                                   ptrdiff_t dlosses_step, ptrdiff_t rows, ptrdiff_t V, int64_t ignore_index, double smoothing);
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
    void (*adam)(real *w, real *m, real *v, const real *grad, ptrdiff_t n, const adam_constants *constants);
    /* ---- fingerprint.c */
    void (*fingerprint_chunk)(uint64_t hash[2], const void *data, size_t bytes, uint64_t index);
} FSQ_FN(kernels);

/* The tables that this build has, by fsq_isa; NULL where the build has none. */
extern const FSQ_FN(kernels) *const FSQ_FN(kernels_of)[FSQ_ISA_COUNT];

static inline const FSQ_FN(kernels) *FSQ_FN(kernels_now)(void) { return FSQ_FN(kernels_of)[fsq_isa_current]; }

#endif
