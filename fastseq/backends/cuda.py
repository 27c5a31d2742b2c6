"""The CUDA backend: CuPy arrays in, CuPy arrays out, with the signatures of `cpu.py` and `reference.py`, where each function is explained.

Operations live in families, `cuda_<family>.py`, whose kernels `cuda_launch.py` compiles from `kernels/*.cu` at the first use. Everything
runs on CuPy's current stream, in memory of CuPy's pool; nothing waits for the device but `ids_find_outside` and `sum_squares`, which
return a number to Python. Results are the same in every run: sums have one order, whatever the number of blocks in flight.
"""

from __future__ import annotations

from fastseq.backends.cuda_additive import additive_attention_backward as additive_attention_backward
from fastseq.backends.cuda_additive import additive_attention_forward as additive_attention_forward
from fastseq.backends.cuda_attention import attention_backward as attention_backward
from fastseq.backends.cuda_attention import attention_forward as attention_forward
from fastseq.backends.cuda_conv import batch_norm_backward as batch_norm_backward
from fastseq.backends.cuda_conv import batch_norm_forward as batch_norm_forward
from fastseq.backends.cuda_conv import conv_backward as conv_backward
from fastseq.backends.cuda_conv import conv_forward as conv_forward
from fastseq.backends.cuda_conv import max_pool_backward as max_pool_backward
from fastseq.backends.cuda_conv import max_pool_forward as max_pool_forward
from fastseq.backends.cuda_decoder import attention_decoder_backward as attention_decoder_backward
from fastseq.backends.cuda_decoder import attention_decoder_forward as attention_decoder_forward
from fastseq.backends.cuda_decoder import attention_decoder_pack as attention_decoder_pack
from fastseq.backends.cuda_embedding import embedding_backward as embedding_backward
from fastseq.backends.cuda_embedding import embedding_forward as embedding_forward
from fastseq.backends.cuda_embedding import ids_find_outside as ids_find_outside
from fastseq.backends.cuda_matmul import bias_backward as bias_backward
from fastseq.backends.cuda_matmul import matmul as matmul
from fastseq.backends.cuda_matmul import pack as pack
from fastseq.backends.cuda_norm import layer_norm_backward as layer_norm_backward
from fastseq.backends.cuda_norm import layer_norm_forward as layer_norm_forward
from fastseq.backends.cuda_optim import adagrad as adagrad
from fastseq.backends.cuda_optim import adam as adam
from fastseq.backends.cuda_optim import adam_all as adam_all
from fastseq.backends.cuda_optim import rmsprop as rmsprop
from fastseq.backends.cuda_optim import scale as scale
from fastseq.backends.cuda_optim import sgd as sgd
from fastseq.backends.cuda_optim import sum_squares as sum_squares
from fastseq.backends.cuda_pointwise import dropout as dropout
from fastseq.backends.cuda_pointwise import pointwise_backward as pointwise_backward
from fastseq.backends.cuda_pointwise import pointwise_forward as pointwise_forward
from fastseq.backends.cuda_pointwise import sum_backward as sum_backward
from fastseq.backends.cuda_recurrent import recurrent_backward as recurrent_backward
from fastseq.backends.cuda_recurrent import recurrent_forward as recurrent_forward
from fastseq.backends.cuda_recurrent import recurrent_pack as recurrent_pack
from fastseq.backends.cuda_recurrent import recurrent_stack as recurrent_stack
from fastseq.backends.cuda_recurrent_stream import recurrent_stream as recurrent_stream
from fastseq.backends.cuda_softmax import cross_entropy_backward as cross_entropy_backward
from fastseq.backends.cuda_softmax import cross_entropy_forward as cross_entropy_forward
from fastseq.backends.cuda_softmax import linear_cross_entropy_backward as linear_cross_entropy_backward
from fastseq.backends.cuda_softmax import linear_cross_entropy_forward as linear_cross_entropy_forward
from fastseq.backends.cuda_softmax import log_softmax_backward as log_softmax_backward
from fastseq.backends.cuda_softmax import log_softmax_forward as log_softmax_forward
from fastseq.backends.cuda_softmax import mean_loss as mean_loss
from fastseq.backends.cuda_softmax import softmax_backward as softmax_backward
from fastseq.backends.cuda_softmax import softmax_forward as softmax_forward
