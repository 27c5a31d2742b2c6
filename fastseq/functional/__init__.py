"""Stateless differentiable operations: arrays in, arrays out; Tensors in, Tensors out and recorded.

One file per operation. Each validates, calls the backend of its arrays, and records a backward function that stands beside
the forward one. Nothing here converts a dtype: float32 with float64 raises, and only Python numbers adapt.

All arrays of a call are NumPy's, or all are CuPy's: nothing is moved. Only options may lie on either side: lengths, of which a CuPy array is
copied from the GPU, and masks without a gradient, of which a NumPy array is copied there. On a GPU ids are looked at before a kernel reads
them, which waits once for the device.
"""

from fastseq.functional.activations import (
    elu,
    hardtanh,
    leaky_relu,
    logsigmoid,
    mish,
    relu6,
    selu,
    silu,
    softplus,
    softsign,
)
from fastseq.functional.additive_attention import (
    additive_attention,
    additive_attention_backward,
    additive_attention_forward,
)
from fastseq.functional.arithmetic import add, div, mul, neg, pow, sub
from fastseq.functional.attention import (
    scaled_dot_product_attention,
    scaled_dot_product_attention_backward,
    scaled_dot_product_attention_forward,
)
from fastseq.functional.attention_decoder import (
    attention_decoder,
    attention_decoder_backward,
    attention_decoder_forward,
)
from fastseq.functional.batch_norm import batch_norm, batch_norm_backward, batch_norm_forward
from fastseq.functional.conv import conv1d, conv1d_backward, conv1d_forward, conv2d, conv2d_backward, conv2d_forward
from fastseq.functional.cross_entropy import cross_entropy
from fastseq.functional.decoder_memory import DecoderMemory, decoder_memory
from fastseq.functional.dropout import dropout
from fastseq.functional.embedding import embedding
from fastseq.functional.gru import gru, gru_backward, gru_forward
from fastseq.functional.layer_norm import (
    layer_norm,
    layer_norm_backward,
    layer_norm_forward,
    rms_norm,
    rms_norm_backward,
    rms_norm_forward,
)
from fastseq.functional.linear_cross_entropy import (
    linear_cross_entropy,
    linear_cross_entropy_backward,
    linear_cross_entropy_forward,
)
from fastseq.functional.losses import (
    binary_cross_entropy_with_logits,
    huber_loss,
    l1_loss,
    mse_loss,
    negative_sampling_loss,
    rmse_loss,
)
from fastseq.functional.lstm import lstm, lstm_backward, lstm_forward
from fastseq.functional.matmul import linear, matmul, pack
from fastseq.functional.max_pool import max_pool2d, max_pool2d_backward, max_pool2d_forward
from fastseq.functional.mut import mut, mut_backward, mut_forward
from fastseq.functional.pointwise import erf, exp, gelu, log, relu, sigmoid, tanh
from fastseq.functional.recurrent import Noise
from fastseq.functional.reduce import max, mean, sum
from fastseq.functional.rnn import rnn, rnn_backward, rnn_forward
from fastseq.functional.rotary import rotary_embedding
from fastseq.functional.self_attention import self_attention, self_attention_backward, self_attention_forward
from fastseq.functional.shape import concatenate, reshape, split, stack, swapaxes, transpose, where
from fastseq.functional.softmax import log_softmax, softmax

__all__ = [
    "DecoderMemory",
    "Noise",
    "add",
    "additive_attention",
    "additive_attention_backward",
    "additive_attention_forward",
    "attention_decoder",
    "attention_decoder_backward",
    "attention_decoder_forward",
    "batch_norm",
    "batch_norm_backward",
    "batch_norm_forward",
    "binary_cross_entropy_with_logits",
    "concatenate",
    "conv1d",
    "conv1d_backward",
    "conv1d_forward",
    "conv2d",
    "conv2d_backward",
    "conv2d_forward",
    "cross_entropy",
    "decoder_memory",
    "div",
    "dropout",
    "elu",
    "embedding",
    "erf",
    "exp",
    "gelu",
    "gru",
    "gru_backward",
    "gru_forward",
    "hardtanh",
    "huber_loss",
    "l1_loss",
    "layer_norm",
    "layer_norm_backward",
    "layer_norm_forward",
    "leaky_relu",
    "linear",
    "linear_cross_entropy",
    "linear_cross_entropy_backward",
    "linear_cross_entropy_forward",
    "log",
    "log_softmax",
    "logsigmoid",
    "lstm",
    "lstm_backward",
    "lstm_forward",
    "matmul",
    "max",
    "max_pool2d",
    "max_pool2d_backward",
    "max_pool2d_forward",
    "mean",
    "mish",
    "mse_loss",
    "mul",
    "mut",
    "mut_backward",
    "mut_forward",
    "neg",
    "negative_sampling_loss",
    "pack",
    "pow",
    "relu",
    "relu6",
    "reshape",
    "rms_norm",
    "rms_norm_backward",
    "rms_norm_forward",
    "rmse_loss",
    "rnn",
    "rnn_backward",
    "rnn_forward",
    "rotary_embedding",
    "scaled_dot_product_attention",
    "scaled_dot_product_attention_backward",
    "scaled_dot_product_attention_forward",
    "self_attention",
    "self_attention_backward",
    "self_attention_forward",
    "selu",
    "sigmoid",
    "silu",
    "softmax",
    "softplus",
    "softsign",
    "split",
    "stack",
    "sub",
    "sum",
    "swapaxes",
    "tanh",
    "transpose",
    "where",
]
