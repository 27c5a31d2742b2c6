/* all.c - every kernel for the instruction set and float type that the including file names, and their table. */
#include "kernels.h"
#include "../simd/vec.h"
#include "../simd/vec64.h"
#include "../simd/vmath.h"

#include "dropout.c"
#include "gemm.c"
#include "recurrent.c"
#include "gated.c"
#include "layer_norm.c"
#include "norm.c"
#include "pointwise.c"
#include "bias.c"
#include "softmax.c"
#include "cross_entropy.c"
#include "additive_attention.c"
#include "attention_decoder.c"
#include "attention.c"
#include "embedding.c"
#include "conv.c"
#include "max_pool.c"
#include "batch_norm.c"
#include "optim.c"
#include "fingerprint.c"

#define ALL_TABLE(isa) FSQ_TABLE(isa) /* one more step, so that FSQ_ISA is expanded */

const FSQ_FN(kernels) ALL_TABLE(FSQ_ISA) = {
    .lanes = VL,
    .flops_per_ns = 7.0 * VL,
    .gemm_rows = gemm_rows,
    .gemm_cols = gemm_cols,
    .gemm_turned_rows = gemm_turned_rows,
    .gemm_block = gemm_block,
    .gemm_row = gemm_row,
    .gemm_turned = gemm_turned,
    .gemm_pack_a = gemm_pack_a,
    .gemm_pack_b = gemm_pack_b,
    .recurrent_forward_blocks = {[FSQ_RNN_TANH] = rnn_forward_blocks, [FSQ_RNN_RELU] = rnn_forward_blocks, [FSQ_LSTM] = lstm_forward_blocks, [FSQ_GRU] = gru_forward_blocks},
    .recurrent_input_blocks = {[FSQ_RNN_TANH] = rnn_input_blocks, [FSQ_RNN_RELU] = rnn_input_blocks, [FSQ_LSTM] = lstm_input_blocks, [FSQ_GRU] = gru_input_blocks},
    .recurrent_pack_blocks = recurrent_pack_blocks,
    .recurrent_backward_units = {[FSQ_RNN_TANH] = rnn_backward_units, [FSQ_RNN_RELU] = rnn_backward_units, [FSQ_LSTM] = lstm_backward_units, [FSQ_GRU] = gru_backward_units},
    .recurrent_finish_units = recurrent_finish_units,
    .recurrent_upstream_units = recurrent_upstream_units,
    .recurrent_carry = recurrent_carry,
    .recurrent_mask = recurrent_mask,
    .lstm_hidden_again = lstm_hidden_again,
    .lstm_backward_peepholes = lstm_backward_peepholes,
    .gated_reset_units = gated_reset_units,
    .gated_forward_units = gated_forward_units,
    .gated_backward_units = gated_backward_units,
    .gated_backward_reset = gated_backward_reset,
    .gated_backward_tanh = gated_backward_tanh,
    .gated_operands = gated_operands,
    .layer_norm_forward = {layer_norm_forward_plain, layer_norm_forward_centred},
    .layer_norm_backward = {layer_norm_backward_plain, layer_norm_backward_centred},
    .norm_forward_rows = {[FSQ_LSTM] = norm_lstm_forward_rows, [FSQ_GRU] = norm_gru_forward_rows},
    .norm_backward_rows = {[FSQ_LSTM] = norm_lstm_backward_rows, [FSQ_GRU] = norm_gru_backward_rows},
    .norm_backward_row = norm_backward_row,
    .attention_turn_in = attention_turn_in,
    .attention_turn_out = attention_turn_out,
    .attention_turn_add = attention_turn_add,
    .attention_hide = attention_hide,
    .attention_mask = attention_mask,
    .attention_seen = attention_seen,
    .attention_dropout = attention_dropout,
    .attention_softmax = attention_softmax,
    .attention_scale = attention_scale,
    .attention_finish = attention_finish,
    .attention_row = attention_row,
    .attention_weights = attention_weights,
    .attention_scores_backward = attention_scores_backward,
    .attention_row_backward = attention_row_backward,
    .attention_dots = attention_dots,
    .attention_plain = attention_plain,
    .attention_delta = attention_delta,
    .pointwise_forward[FSQ_IDENTITY] = pointwise_forward_identity,
    .pointwise_forward[FSQ_EXP] = pointwise_forward_exp,
    .pointwise_forward[FSQ_LOG] = pointwise_forward_log,
    .pointwise_forward[FSQ_TANH] = pointwise_forward_tanh,
    .pointwise_forward[FSQ_SIGMOID] = pointwise_forward_sigmoid,
    .pointwise_forward[FSQ_RELU] = pointwise_forward_relu,
    .pointwise_forward[FSQ_ERF] = pointwise_forward_erf,
    .pointwise_forward[FSQ_GELU] = pointwise_forward_gelu,
    .pointwise_forward[FSQ_GELU_TANH] = pointwise_forward_gelu_tanh,
    .pointwise_forward[FSQ_SILU] = pointwise_forward_silu,
    .pointwise_forward[FSQ_SOFTPLUS] = pointwise_forward_softplus,
    .pointwise_forward[FSQ_ELU] = pointwise_forward_elu,
    .pointwise_forward[FSQ_LEAKY_RELU] = pointwise_forward_leaky_relu,
    .pointwise_backward[FSQ_IDENTITY] = pointwise_backward_identity,
    .pointwise_backward[FSQ_EXP] = pointwise_backward_exp,
    .pointwise_backward[FSQ_LOG] = pointwise_backward_log,
    .pointwise_backward[FSQ_TANH] = pointwise_backward_tanh,
    .pointwise_backward[FSQ_SIGMOID] = pointwise_backward_sigmoid,
    .pointwise_backward[FSQ_RELU] = pointwise_backward_relu,
    .pointwise_backward[FSQ_ERF] = pointwise_backward_erf,
    .pointwise_backward[FSQ_GELU] = pointwise_backward_gelu,
    .pointwise_backward[FSQ_GELU_TANH] = pointwise_backward_gelu_tanh,
    .pointwise_backward[FSQ_SILU] = pointwise_backward_silu,
    .pointwise_backward[FSQ_SOFTPLUS] = pointwise_backward_softplus,
    .pointwise_backward[FSQ_ELU] = pointwise_backward_elu,
    .pointwise_backward[FSQ_LEAKY_RELU] = pointwise_backward_leaky_relu,
    .bias_backward = bias_backward,
    .conv_columns = conv_columns,
    .conv_add = conv_add,
    .conv_store = conv_store,
    .conv_load = conv_load,
    .conv_sum = conv_sum,
    .max_pool_forward = max_pool_forward,
    .max_pool_backward = max_pool_backward,
    .batch_norm_forward = batch_norm_forward,
    .batch_norm_backward = batch_norm_backward,
    .softmax_forward = softmax_forward,
    .softmax_backward = softmax_backward,
    .log_softmax_forward = log_softmax_forward,
    .log_softmax_backward = log_softmax_backward,
    .cross_entropy_forward = cross_entropy_forward,
    .cross_entropy_backward = cross_entropy_backward,
    .additive_range = ADDITIVE_RANGE,
    .additive_beyond = additive_beyond,
    .additive_panel = additive_panel,
    .additive_scores = additive_scores,
    .additive_scores_far = additive_scores_far,
    .additive_weights = additive_weights,
    .additive_weights_backward = additive_weights_backward,
    .additive_backward = additive_backward,
    .additive_backward_far = additive_backward_far,
    .decoder_backward_far = decoder_backward_far,
    .decoder_backward_near = decoder_backward_near,
    .decoder_near_gradients = decoder_near_gradients,
    .embedding_forward = embedding_forward,
    .embedding_backward = embedding_backward,
    .dropout = dropout,
    .sum_squares = sum_squares,
    .scale = scale,
    .sgd = sgd,
    .adagrad = adagrad,
    .rmsprop = rmsprop,
    .adam = adam,
    .fingerprint_chunk = fingerprint_chunk,
};
