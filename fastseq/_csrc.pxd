# Mirror of csrc/fastseq.h, which is the contract. Buffers are untyped here: each typed entry point is declared once, with a first
# argument that chooses between its two forms, fsq_<op>_f32 (single) and fsq_<op>_f64.
from libc.stdint cimport int64_t, uint32_t, uint64_t

cdef extern from *:
    """
    #undef I /* <complex.h>, which NumPy includes; here it is the input size */
    #include "fastseq.h"
    """

cdef extern from "fastseq.h" nogil:
    int fsq_isa_select(const char *name)
    const char *fsq_isa_name()
    const char *fsq_isa_available(int i)

    int fsq_threads_get()
    void fsq_threads_set(int n)
    int fsq_threads_set_local(int n)
    int fsq_threads_default()
    int fsq_threads_force(int on)
    int fsq_has_openmp()

    ctypedef enum fsq_function:
        FSQ_IDENTITY
        FSQ_EXP
        FSQ_LOG
        FSQ_TANH
        FSQ_SIGMOID
        FSQ_RELU
        FSQ_ERF
        FSQ_GELU
        FSQ_GELU_TANH
        FSQ_SILU
        FSQ_SOFTPLUS
        FSQ_ELU
        FSQ_LEAKY_RELU

    ptrdiff_t fsq_ids_find_outside(const int64_t *ids, ptrdiff_t n, int64_t limit)
    void fsq_philox(uint32_t *out, uint64_t key, const uint32_t *counter)
    void fsq_fingerprint(uint64_t *state, const void *data, size_t bytes, int threads)

    ctypedef enum fsq_cell:
        FSQ_RNN_TANH
        FSQ_RNN_RELU
        FSQ_LSTM
        FSQ_GRU
        FSQ_GRU_BEFORE
        FSQ_MUT1
        FSQ_MUT2
        FSQ_MUT3

    ctypedef struct fsq_recurrent_call:
        fsq_cell cell
        int layer_norm
        ptrdiff_t T, B, I, H, P
        ptrdiff_t start "from"                      # a keyword here
        ptrdiff_t end "to"
        const int64_t *lengths
        const unsigned char *reset
        double recurrent_dropout, zoneout_h, zoneout_c
        int draw

    ctypedef struct fsq_recurrent_weights:
        const void *w_ih                            # and 11 more pointers, in the order of backends.recurrent.Weights

    ctypedef struct fsq_recurrent_direction:
        int reverse
        uint64_t key_dropout, key_zoneout_h, key_zoneout_c
        const void *packed
        fsq_recurrent_weights weights
        const void *x
        const void *h_0
        const void *c_0
        void *y
        ptrdiff_t y_row
        void *h_n
        void *c_n
        void *cells
        void *cache

    ctypedef struct fsq_recurrent_gradients:
        const void *dy
        const void *dh_n
        const void *dc_n
        const void *dcells
        void *dx
        void *dh_0
        void *dc_0
        void *dstates
        int weights, accumulate
        void *dw_ih                                 # and 11 more, in the same order

    ptrdiff_t fsq_recurrent_cache_width(const fsq_recurrent_call *call)

    ctypedef struct fsq_attention_decoder_call:
        fsq_cell cell
        int additive, projects
        ptrdiff_t T, B, S, I, H, M, A
        double scale
        const int64_t *lengths
        const int64_t *memory_lengths

    ctypedef struct fsq_attention_decoder_weights:
        const void *w_ih                            # and 7 more pointers, in the order of backends.attention_decoder.DecoderWeights

    ctypedef struct fsq_attention_decoder_arrays:
        const void *packed
        fsq_attention_decoder_weights weights
        const void *x
        const void *keys
        const void *memory
        const void *h_0
        const void *c_0
        void *outputs
        void *h_n
        void *c_n
        void *a
        void *both
        void *cells
        void *queries
        void *gates

    ctypedef struct fsq_attention_decoder_gradients:
        const void *doutputs
        const void *dh_n
        const void *dc_n
        const void *da
        void *dx
        void *dkeys
        void *dmemory
        void *dh_0
        void *dc_0
        void *dw_ih                                 # and 7 more, in the same order

    ctypedef struct fsq_attention_array:
        void *data
        ptrdiff_t batch, head, row

    ctypedef struct fsq_conv_call:
        ptrdiff_t N, groups, C, O
        ptrdiff_t H, W, kernel_h, kernel_w, stride_h, stride_w, dilation_h, dilation_w
        ptrdiff_t top, left, out_h, out_w

    ctypedef struct fsq_max_pool_call:
        ptrdiff_t H, W, kernel_h, kernel_w, stride_h, stride_w, padding_h, padding_w, dilation_h, dilation_w, out_h, out_w

    ctypedef struct fsq_attention_call:
        ptrdiff_t B, heads, kv_heads, Tq, Tk, D, Dv
        double scale
        int causal
        ptrdiff_t offset, window
        const int64_t *key_lengths
        const void *mask
        int mask_is_bool
        ptrdiff_t mask_batch, mask_head, mask_query, mask_key
        double dropout
        uint64_t key
        int tiles

cdef extern from *:
    """
    #define FSQ_EITHER(op, single, ...) ((single) ? op##_f32(__VA_ARGS__) : op##_f64(__VA_ARGS__))
    #define FSQ_MATMUL(...) FSQ_EITHER(fsq_matmul, __VA_ARGS__)
    #define FSQ_MATMUL_WORK(...) FSQ_EITHER(fsq_matmul_work, __VA_ARGS__)
    #define FSQ_MATMUL_PACKED_SIZE(...) FSQ_EITHER(fsq_matmul_packed_size, __VA_ARGS__)
    #define FSQ_MATMUL_PACK(...) FSQ_EITHER(fsq_matmul_pack, __VA_ARGS__)
    #define FSQ_RECURRENT_PACKED_SIZE(...) FSQ_EITHER(fsq_recurrent_packed_size, __VA_ARGS__)
    #define FSQ_RECURRENT_PACK(...) FSQ_EITHER(fsq_recurrent_pack, __VA_ARGS__)
    #define FSQ_RECURRENT_FORWARD(...) FSQ_EITHER(fsq_recurrent_forward, __VA_ARGS__)
    #define FSQ_RECURRENT_FORWARD_WORK(...) FSQ_EITHER(fsq_recurrent_forward_work, __VA_ARGS__)
    #define FSQ_RECURRENT_BACKWARD(...) FSQ_EITHER(fsq_recurrent_backward, __VA_ARGS__)
    #define FSQ_RECURRENT_BACKWARD_WORK(...) FSQ_EITHER(fsq_recurrent_backward_work, __VA_ARGS__)
    #define FSQ_RECURRENT_STACK(...) FSQ_EITHER(fsq_recurrent_stack, __VA_ARGS__)
    #define FSQ_RECURRENT_STACK_WORK(...) FSQ_EITHER(fsq_recurrent_stack_work, __VA_ARGS__)
    #define FSQ_ATTENTION_DECODER_PACKED_SIZE(...) FSQ_EITHER(fsq_attention_decoder_packed_size, __VA_ARGS__)
    #define FSQ_ATTENTION_DECODER_PACK(...) FSQ_EITHER(fsq_attention_decoder_pack, __VA_ARGS__)
    #define FSQ_ATTENTION_DECODER_FORWARD(...) FSQ_EITHER(fsq_attention_decoder_forward, __VA_ARGS__)
    #define FSQ_ATTENTION_DECODER_FORWARD_WORK(...) FSQ_EITHER(fsq_attention_decoder_forward_work, __VA_ARGS__)
    #define FSQ_ATTENTION_DECODER_BACKWARD(...) FSQ_EITHER(fsq_attention_decoder_backward, __VA_ARGS__)
    #define FSQ_ATTENTION_DECODER_BACKWARD_WORK(...) FSQ_EITHER(fsq_attention_decoder_backward_work, __VA_ARGS__)
    #define FSQ_ATTENTION_FORWARD(...) FSQ_EITHER(fsq_attention_forward, __VA_ARGS__)
    #define FSQ_ATTENTION_FORWARD_WORK(...) FSQ_EITHER(fsq_attention_forward_work, __VA_ARGS__)
    #define FSQ_ATTENTION_BACKWARD(...) FSQ_EITHER(fsq_attention_backward, __VA_ARGS__)
    #define FSQ_ATTENTION_BACKWARD_WORK(...) FSQ_EITHER(fsq_attention_backward_work, __VA_ARGS__)
    #define FSQ_CONV_FORWARD(...) FSQ_EITHER(fsq_conv_forward, __VA_ARGS__)
    #define FSQ_CONV_BACKWARD(...) FSQ_EITHER(fsq_conv_backward, __VA_ARGS__)
    #define FSQ_CONV_WORK(...) FSQ_EITHER(fsq_conv_work, __VA_ARGS__)
    #define FSQ_MAX_POOL_FORWARD(...) FSQ_EITHER(fsq_max_pool_forward, __VA_ARGS__)
    #define FSQ_MAX_POOL_BACKWARD(...) FSQ_EITHER(fsq_max_pool_backward, __VA_ARGS__)
    #define FSQ_BATCH_NORM_FORWARD(...) FSQ_EITHER(fsq_batch_norm_forward, __VA_ARGS__)
    #define FSQ_BATCH_NORM_BACKWARD(...) FSQ_EITHER(fsq_batch_norm_backward, __VA_ARGS__)
    #define FSQ_POINTWISE_FORWARD(...) FSQ_EITHER(fsq_pointwise_forward, __VA_ARGS__)
    #define FSQ_POINTWISE_BACKWARD(...) FSQ_EITHER(fsq_pointwise_backward, __VA_ARGS__)
    #define FSQ_BIAS_BACKWARD(...) FSQ_EITHER(fsq_bias_backward, __VA_ARGS__)
    #define FSQ_SOFTMAX_FORWARD(...) FSQ_EITHER(fsq_softmax_forward, __VA_ARGS__)
    #define FSQ_SOFTMAX_BACKWARD(...) FSQ_EITHER(fsq_softmax_backward, __VA_ARGS__)
    #define FSQ_LOG_SOFTMAX_FORWARD(...) FSQ_EITHER(fsq_log_softmax_forward, __VA_ARGS__)
    #define FSQ_LOG_SOFTMAX_BACKWARD(...) FSQ_EITHER(fsq_log_softmax_backward, __VA_ARGS__)
    #define FSQ_LAYER_NORM_FORWARD(...) FSQ_EITHER(fsq_layer_norm_forward, __VA_ARGS__)
    #define FSQ_LAYER_NORM_BACKWARD(...) FSQ_EITHER(fsq_layer_norm_backward, __VA_ARGS__)
    #define FSQ_LAYER_NORM_BACKWARD_WORK(...) FSQ_EITHER(fsq_layer_norm_backward_work, __VA_ARGS__)
    #define FSQ_CROSS_ENTROPY_FORWARD(...) FSQ_EITHER(fsq_cross_entropy_forward, __VA_ARGS__)
    #define FSQ_CROSS_ENTROPY_BACKWARD(...) FSQ_EITHER(fsq_cross_entropy_backward, __VA_ARGS__)
    #define FSQ_LINEAR_CROSS_ENTROPY_FORWARD(...) FSQ_EITHER(fsq_linear_cross_entropy_forward, __VA_ARGS__)
    #define FSQ_LINEAR_CROSS_ENTROPY_FORWARD_WORK(...) FSQ_EITHER(fsq_linear_cross_entropy_forward_work, __VA_ARGS__)
    #define FSQ_LINEAR_CROSS_ENTROPY_BACKWARD(...) FSQ_EITHER(fsq_linear_cross_entropy_backward, __VA_ARGS__)
    #define FSQ_LINEAR_CROSS_ENTROPY_BACKWARD_WORK(...) FSQ_EITHER(fsq_linear_cross_entropy_backward_work, __VA_ARGS__)
    #define FSQ_ADDITIVE_ATTENTION_FORWARD(...) FSQ_EITHER(fsq_additive_attention_forward, __VA_ARGS__)
    #define FSQ_ADDITIVE_ATTENTION_FORWARD_WORK(...) FSQ_EITHER(fsq_additive_attention_forward_work, __VA_ARGS__)
    #define FSQ_ADDITIVE_ATTENTION_BACKWARD(...) FSQ_EITHER(fsq_additive_attention_backward, __VA_ARGS__)
    #define FSQ_ADDITIVE_ATTENTION_BACKWARD_WORK(...) FSQ_EITHER(fsq_additive_attention_backward_work, __VA_ARGS__)
    #define FSQ_EMBEDDING_FORWARD(...) FSQ_EITHER(fsq_embedding_forward, __VA_ARGS__)
    #define FSQ_EMBEDDING_BACKWARD(...) FSQ_EITHER(fsq_embedding_backward, __VA_ARGS__)
    #define FSQ_DROPOUT(...) FSQ_EITHER(fsq_dropout, __VA_ARGS__)
    #define FSQ_SUM_SQUARES(...) FSQ_EITHER(fsq_sum_squares, __VA_ARGS__)
    #define FSQ_SCALE(...) FSQ_EITHER(fsq_scale, __VA_ARGS__)
    #define FSQ_SGD(...) FSQ_EITHER(fsq_sgd, __VA_ARGS__)
    #define FSQ_ADAGRAD(...) FSQ_EITHER(fsq_adagrad, __VA_ARGS__)
    #define FSQ_RMSPROP(...) FSQ_EITHER(fsq_rmsprop, __VA_ARGS__)
    #define FSQ_ADAM(...) FSQ_EITHER(fsq_adam, __VA_ARGS__)
    """

cdef extern from * nogil:
    void matmul_c "FSQ_MATMUL"(bint single, void *c, const void *a, const void *b, const void *packed, const void *bias,
                               ptrdiff_t batch, ptrdiff_t M, ptrdiff_t N, ptrdiff_t K,
                               ptrdiff_t c_batch, ptrdiff_t c_row, ptrdiff_t a_batch, ptrdiff_t a_row, ptrdiff_t a_col,
                               ptrdiff_t b_batch, ptrdiff_t b_row, ptrdiff_t b_col,
                               int accumulate, fsq_function function, int threads, void *work)
    size_t matmul_work_c "FSQ_MATMUL_WORK"(bint single, ptrdiff_t M, ptrdiff_t N, ptrdiff_t K, int packed, int threads)
    size_t matmul_packed_size_c "FSQ_MATMUL_PACKED_SIZE"(bint single, ptrdiff_t N, ptrdiff_t K)
    void matmul_pack_c "FSQ_MATMUL_PACK"(bint single, void *panels, const void *b, ptrdiff_t N, ptrdiff_t K,
                                         ptrdiff_t b_row, ptrdiff_t b_col, int threads)

    size_t recurrent_packed_size_c "FSQ_RECURRENT_PACKED_SIZE"(bint single, const fsq_recurrent_call *call)
    void recurrent_pack_c "FSQ_RECURRENT_PACK"(bint single, void *packed, const fsq_recurrent_call *call, const fsq_recurrent_weights *weights, int threads)
    void recurrent_forward_c "FSQ_RECURRENT_FORWARD"(bint single, const fsq_recurrent_call *call, const fsq_recurrent_direction *directions, int D,
                                                     int threads, void *work)
    size_t recurrent_forward_work_c "FSQ_RECURRENT_FORWARD_WORK"(bint single, const fsq_recurrent_call *call, int D, int threads)
    void recurrent_backward_c "FSQ_RECURRENT_BACKWARD"(bint single, const fsq_recurrent_call *call, const fsq_recurrent_direction *directions,
                                                       const fsq_recurrent_gradients *gradients, int D, int threads, void *work)
    size_t recurrent_backward_work_c "FSQ_RECURRENT_BACKWARD_WORK"(bint single, const fsq_recurrent_call *call, int D, int threads)
    void recurrent_stack_c "FSQ_RECURRENT_STACK"(bint single, const fsq_recurrent_call *calls, const fsq_recurrent_direction *layers, int L,
                                               int threads, void *work)
    size_t recurrent_stack_work_c "FSQ_RECURRENT_STACK_WORK"(bint single, const fsq_recurrent_call *calls, int L, int threads)

    size_t attention_decoder_packed_size_c "FSQ_ATTENTION_DECODER_PACKED_SIZE"(bint single, const fsq_attention_decoder_call *call)
    void attention_decoder_pack_c "FSQ_ATTENTION_DECODER_PACK"(bint single, void *packed, const fsq_attention_decoder_call *call,
                                                               const fsq_attention_decoder_weights *weights, int threads)
    void attention_decoder_forward_c "FSQ_ATTENTION_DECODER_FORWARD"(bint single, const fsq_attention_decoder_call *call,
                                                                     const fsq_attention_decoder_arrays *arrays, int threads, void *work)
    size_t attention_decoder_forward_work_c "FSQ_ATTENTION_DECODER_FORWARD_WORK"(bint single, const fsq_attention_decoder_call *call, int threads)
    void attention_decoder_backward_c "FSQ_ATTENTION_DECODER_BACKWARD"(bint single, const fsq_attention_decoder_call *call,
                                                                       const fsq_attention_decoder_arrays *arrays,
                                                                       const fsq_attention_decoder_gradients *gradients, int threads, void *work)
    size_t attention_decoder_backward_work_c "FSQ_ATTENTION_DECODER_BACKWARD_WORK"(bint single, const fsq_attention_decoder_call *call, int threads)

    void attention_forward_c "FSQ_ATTENTION_FORWARD"(bint single, const fsq_attention_array *y, void *lse, void *weights, const fsq_attention_array *q,
                                                     const fsq_attention_array *k, const fsq_attention_array *v, const fsq_attention_call *call,
                                                     int threads, void *work)
    size_t attention_forward_work_c "FSQ_ATTENTION_FORWARD_WORK"(bint single, const fsq_attention_call *call, int threads)
    void attention_backward_c "FSQ_ATTENTION_BACKWARD"(bint single, const fsq_attention_array *dq, const fsq_attention_array *dk,
                                                       const fsq_attention_array *dv, void *dscores, const fsq_attention_array *q,
                                                       const fsq_attention_array *k, const fsq_attention_array *v, const fsq_attention_array *y,
                                                       const void *lse, const fsq_attention_array *dy, const void *weights, const void *dweights,
                                                       const fsq_attention_call *call, int threads, void *work)
    size_t attention_backward_work_c "FSQ_ATTENTION_BACKWARD_WORK"(bint single, const fsq_attention_call *call, int threads)

    void conv_forward_c "FSQ_CONV_FORWARD"(bint single, void *y, const void *x, const void *weight, const void *bias, const fsq_conv_call *call,
                                           int threads, void *work)
    void conv_backward_c "FSQ_CONV_BACKWARD"(bint single, void *dx, void *dweight, void *dbias, const void *dy, const void *x, const void *weight,
                                             const fsq_conv_call *call, int threads, void *work)
    size_t conv_work_c "FSQ_CONV_WORK"(bint single, const fsq_conv_call *call, int threads)
    void max_pool_forward_c "FSQ_MAX_POOL_FORWARD"(bint single, void *y, int64_t *places, const void *x, ptrdiff_t planes,
                                                   const fsq_max_pool_call *call, int threads)
    void max_pool_backward_c "FSQ_MAX_POOL_BACKWARD"(bint single, void *dx, const void *dy, const int64_t *places, ptrdiff_t planes,
                                                     const fsq_max_pool_call *call, int threads)
    void batch_norm_forward_c "FSQ_BATCH_NORM_FORWARD"(bint single, void *y, void *mean, void *variance, const void *x, const void *weight,
                                                       const void *bias, ptrdiff_t N, ptrdiff_t C, ptrdiff_t L, double eps, int given, int threads)
    void batch_norm_backward_c "FSQ_BATCH_NORM_BACKWARD"(bint single, void *dx, void *dweight, void *dbias, const void *dy, const void *x,
                                                         const void *mean, const void *variance, const void *weight, ptrdiff_t N, ptrdiff_t C,
                                                         ptrdiff_t L, double eps, int given, int threads)
    void pointwise_forward_c "FSQ_POINTWISE_FORWARD"(bint single, void *y, const void *x, ptrdiff_t n, fsq_function function, double parameter,
                                                     int threads)
    void pointwise_backward_c "FSQ_POINTWISE_BACKWARD"(bint single, void *dx, const void *saved, const void *dy, ptrdiff_t n,
                                                       fsq_function function, double parameter, int threads)
    void bias_backward_c "FSQ_BIAS_BACKWARD"(bint single, void *db, const void *dy, ptrdiff_t M, ptrdiff_t N, int threads)
    void softmax_forward_c "FSQ_SOFTMAX_FORWARD"(bint single, void *y, const void *x, ptrdiff_t M, ptrdiff_t N, int threads)
    void softmax_backward_c "FSQ_SOFTMAX_BACKWARD"(bint single, void *dx, const void *y, const void *dy, ptrdiff_t M, ptrdiff_t N, int threads)

    void log_softmax_forward_c "FSQ_LOG_SOFTMAX_FORWARD"(bint single, void *y, const void *x, ptrdiff_t M, ptrdiff_t N, int threads)
    void log_softmax_backward_c "FSQ_LOG_SOFTMAX_BACKWARD"(bint single, void *dx, const void *y, const void *dy, ptrdiff_t M, ptrdiff_t N,
                                                           int threads)
    void layer_norm_forward_c "FSQ_LAYER_NORM_FORWARD"(bint single, void *y, void *s, void *mean, void *rstd, const void *x, const void *residual,
                                                       const void *weight, const void *bias, ptrdiff_t M, ptrdiff_t N, double eps, int centred,
                                                       int threads)
    void layer_norm_backward_c "FSQ_LAYER_NORM_BACKWARD"(bint single, void *dx, void *dweight, void *dbias, const void *dy, const void *ds,
                                                         const void *s, const void *mean, const void *rstd, const void *weight,
                                                         ptrdiff_t M, ptrdiff_t N, int centred, int threads, void *work)
    size_t layer_norm_backward_work_c "FSQ_LAYER_NORM_BACKWARD_WORK"(bint single, ptrdiff_t M, ptrdiff_t N)

    void cross_entropy_forward_c "FSQ_CROSS_ENTROPY_FORWARD"(bint single, void *losses, void *lse, const void *logits, const int64_t *targets,
                                                             ptrdiff_t N, ptrdiff_t V, int64_t ignore_index, double smoothing, int threads)
    void cross_entropy_backward_c "FSQ_CROSS_ENTROPY_BACKWARD"(bint single, void *dlogits, const void *lse, const void *logits,
                                                               const int64_t *targets, const void *dlosses, ptrdiff_t dlosses_step,
                                                               ptrdiff_t N, ptrdiff_t V, int64_t ignore_index, double smoothing, int threads)
    void linear_cross_entropy_forward_c "FSQ_LINEAR_CROSS_ENTROPY_FORWARD"(bint single, void *losses, void *lse, const void *x, const void *weight,
                                                                           const void *bias, const int64_t *targets, ptrdiff_t N, ptrdiff_t H,
                                                                           ptrdiff_t V, int64_t ignore_index, double smoothing, int threads,
                                                                           void *work)
    size_t linear_cross_entropy_forward_work_c "FSQ_LINEAR_CROSS_ENTROPY_FORWARD_WORK"(bint single, ptrdiff_t N, ptrdiff_t H, ptrdiff_t V, int threads)
    void linear_cross_entropy_backward_c "FSQ_LINEAR_CROSS_ENTROPY_BACKWARD"(bint single, void *dx, void *dweight, void *dbias, const void *lse,
                                                                             const void *x, const void *weight, const void *bias,
                                                                             const int64_t *targets, const void *dlosses, ptrdiff_t dlosses_step,
                                                                             ptrdiff_t N, ptrdiff_t H, ptrdiff_t V, int64_t ignore_index,
                                                                             double smoothing, int threads, void *work)
    size_t linear_cross_entropy_backward_work_c "FSQ_LINEAR_CROSS_ENTROPY_BACKWARD_WORK"(bint single, ptrdiff_t N, ptrdiff_t H, ptrdiff_t V, int threads)
    void additive_attention_forward_c "FSQ_ADDITIVE_ATTENTION_FORWARD"(
        bint single, void *y, void *weights, const void *q, const void *k, const void *v, const void *u,
        const int64_t *lengths, const unsigned char *visible, const void *bias, ptrdiff_t mask_batch, ptrdiff_t mask_query, ptrdiff_t mask_key,
        ptrdiff_t B, ptrdiff_t Tq, ptrdiff_t Tk, ptrdiff_t D, ptrdiff_t Dv, int threads, void *work)
    size_t additive_attention_forward_work_c "FSQ_ADDITIVE_ATTENTION_FORWARD_WORK"(bint single, ptrdiff_t Tq, ptrdiff_t Tk, ptrdiff_t D, ptrdiff_t Dv,
                                                                                   int threads)
    void additive_attention_backward_c "FSQ_ADDITIVE_ATTENTION_BACKWARD"(
        bint single, void *dq, void *dk, void *dv, void *du, void *dscores, const void *weights, const void *q, const void *k, const void *v,
        const void *u, const void *dy, const void *dweights, const int64_t *lengths,
        ptrdiff_t B, ptrdiff_t Tq, ptrdiff_t Tk, ptrdiff_t D, ptrdiff_t Dv, int threads, void *work)
    size_t additive_attention_backward_work_c "FSQ_ADDITIVE_ATTENTION_BACKWARD_WORK"(bint single, ptrdiff_t B, ptrdiff_t Tq, ptrdiff_t Tk, ptrdiff_t D,
                                                                                     ptrdiff_t Dv, int threads)
    void embedding_forward_c "FSQ_EMBEDDING_FORWARD"(bint single, void *y, const int64_t *ids, const void *weight,
                                                     ptrdiff_t n, ptrdiff_t V, ptrdiff_t D, int threads)
    void embedding_backward_c "FSQ_EMBEDDING_BACKWARD"(bint single, void *dweight, const void *dy, const int64_t *ids,
                                                       ptrdiff_t n, ptrdiff_t V, ptrdiff_t D, int64_t padding_idx, int threads)
    void dropout_c "FSQ_DROPOUT"(bint single, void *y, const void *x, ptrdiff_t n, double p, uint64_t seed, uint32_t layer, uint32_t call,
                                 int threads)

    double sum_squares_c "FSQ_SUM_SQUARES"(bint single, const void *x, ptrdiff_t n, int threads)
    void scale_c "FSQ_SCALE"(bint single, void *x, ptrdiff_t n, double factor, int threads)
    void sgd_c "FSQ_SGD"(bint single, void *w, void *velocity, const void *grad, const int64_t *rows, ptrdiff_t n, ptrdiff_t width,
                         double lr, double momentum, int nesterov, int first, double weight_decay, int threads)
    void adagrad_c "FSQ_ADAGRAD"(bint single, void *w, void *sum, const void *grad, const int64_t *rows, ptrdiff_t n, ptrdiff_t width,
                                 double lr, double eps, double weight_decay, int threads)
    void rmsprop_c "FSQ_RMSPROP"(bint single, void *w, void *square, void *velocity, void *mean, const void *grad, ptrdiff_t n,
                                 double lr, double alpha, double eps, double momentum, double weight_decay, int threads)
    void adam_c "FSQ_ADAM"(bint single, void *w, void *m, void *v, const void *grad, const int64_t *rows, ptrdiff_t n, ptrdiff_t width,
                           double lr, double beta1, double beta2, double eps, double weight_decay, int decoupled, int64_t step, int threads)
