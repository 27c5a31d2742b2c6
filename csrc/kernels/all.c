/* all.c - every kernel for the instruction set and float type that the including file names, and their table. */
#include "kernels.h"
#include "../simd/vec.h"
#include "../simd/vec64.h"
#include "../simd/vmath.h"

#include "gemm.c"
#include "lstm.c"
#include "pointwise.c"
#include "bias.c"
#include "softmax.c"
#include "cross_entropy.c"
#include "embedding.c"
#include "dropout.c"
#include "optim.c"
#include "fingerprint.c"

#define ALL_TABLE(isa) FSQ_TABLE(isa) /* one more step, so that FSQ_ISA is expanded */

const FSQ_FN(kernels) ALL_TABLE(FSQ_ISA) = {
    .lanes = VL,
    .flops_per_ns = 7.0 * VL,
    .gemm_rows = gemm_rows,
    .gemm_cols = gemm_cols,
    .gemm_block = gemm_block,
    .gemm_pack_a = gemm_pack_a,
    .gemm_pack_b = gemm_pack_b,
    .lstm_cols = lstm_cols,
    .lstm_forward_blocks = lstm_forward_blocks,
    .lstm_input_blocks = lstm_input_blocks,
    .lstm_pack_blocks = lstm_pack_blocks,
    .lstm_backward_units = lstm_backward_units,
    .pointwise_forward[FSQ_IDENTITY] = pointwise_forward_identity,
    .pointwise_forward[FSQ_EXP] = pointwise_forward_exp,
    .pointwise_forward[FSQ_LOG] = pointwise_forward_log,
    .pointwise_forward[FSQ_TANH] = pointwise_forward_tanh,
    .pointwise_forward[FSQ_SIGMOID] = pointwise_forward_sigmoid,
    .pointwise_forward[FSQ_RELU] = pointwise_forward_relu,
    .pointwise_backward[FSQ_IDENTITY] = pointwise_backward_identity,
    .pointwise_backward[FSQ_EXP] = pointwise_backward_exp,
    .pointwise_backward[FSQ_LOG] = pointwise_backward_log,
    .pointwise_backward[FSQ_TANH] = pointwise_backward_tanh,
    .pointwise_backward[FSQ_SIGMOID] = pointwise_backward_sigmoid,
    .pointwise_backward[FSQ_RELU] = pointwise_backward_relu,
    .bias_backward = bias_backward,
    .softmax_forward = softmax_forward,
    .softmax_backward = softmax_backward,
    .cross_entropy_forward = cross_entropy_forward,
    .cross_entropy_backward = cross_entropy_backward,
    .embedding_forward = embedding_forward,
    .embedding_backward = embedding_backward,
    .dropout = dropout,
    .sum_squares = sum_squares,
    .scale = scale,
    .sgd = sgd,
    .adam = adam,
    .fingerprint_chunk = fingerprint_chunk,
};
