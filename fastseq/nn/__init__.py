"""Layers: Module, Parameter, and the layers that own parameters."""

from fastseq.nn.activations import (
    ELU,
    GELU,
    SELU,
    Hardtanh,
    LeakyReLU,
    LogSigmoid,
    LogSoftmax,
    Mish,
    ReLU,
    ReLU6,
    Sigmoid,
    SiLU,
    Softmax,
    Softplus,
    Softsign,
    Tanh,
)
from fastseq.nn.attention_decoder import AttentionDecoder
from fastseq.nn.attention_scores import AdditiveAttention, AttentionPooling, BilinearAttention, DotAttention
from fastseq.nn.batch_norm import BatchNorm1d
from fastseq.nn.cache import KeyValueCache
from fastseq.nn.cells import GRUCell, LSTMCell, RNNCell
from fastseq.nn.containers import ModuleDict, ModuleList, Residual, Sequential
from fastseq.nn.conv import Conv1d, Conv2d
from fastseq.nn.dropout import Dropout
from fastseq.nn.embedding import Embedding
from fastseq.nn.highway import Highway
from fastseq.nn.linear import Linear
from fastseq.nn.masks import causal_mask, pad_sequences, padding_mask
from fastseq.nn.max_pool import MaxPool2d
from fastseq.nn.module import Module, Parameter
from fastseq.nn.multihead import MultiheadAttention
from fastseq.nn.norm import LayerNorm, RMSNorm
from fastseq.nn.positions import (
    LearnedPositionalEncoding,
    OneHotPositionalEncoding,
    RotaryEmbedding,
    SinusoidalPositionalEncoding,
)
from fastseq.nn.recurrent import GRU, LSTM, MUT1, MUT2, MUT3, RNN
from fastseq.nn.transformer import Transformer, TransformerDecoder, TransformerEncoder
from fastseq.nn.transformer_layers import TransformerDecoderLayer, TransformerEncoderLayer

__all__ = [
    "ELU",
    "GELU",
    "GRU",
    "LSTM",
    "MUT1",
    "MUT2",
    "MUT3",
    "RNN",
    "SELU",
    "AdditiveAttention",
    "AttentionDecoder",
    "AttentionPooling",
    "BatchNorm1d",
    "BilinearAttention",
    "Conv1d",
    "Conv2d",
    "DotAttention",
    "Dropout",
    "Embedding",
    "GRUCell",
    "Hardtanh",
    "Highway",
    "KeyValueCache",
    "LSTMCell",
    "LayerNorm",
    "LeakyReLU",
    "LearnedPositionalEncoding",
    "Linear",
    "LogSigmoid",
    "LogSoftmax",
    "MaxPool2d",
    "Mish",
    "Module",
    "ModuleDict",
    "ModuleList",
    "MultiheadAttention",
    "OneHotPositionalEncoding",
    "Parameter",
    "RMSNorm",
    "RNNCell",
    "ReLU",
    "ReLU6",
    "Residual",
    "RotaryEmbedding",
    "Sequential",
    "SiLU",
    "Sigmoid",
    "SinusoidalPositionalEncoding",
    "Softmax",
    "Softplus",
    "Softsign",
    "Tanh",
    "Transformer",
    "TransformerDecoder",
    "TransformerDecoderLayer",
    "TransformerEncoder",
    "TransformerEncoderLayer",
    "causal_mask",
    "pad_sequences",
    "padding_mask",
]
