"""Layers: Module, Parameter, and the layers that own parameters."""

from fastseq.nn.activations import GELU, LogSoftmax, ReLU, Sigmoid, Softmax, Tanh
from fastseq.nn.attention_decoder import AttentionDecoder
from fastseq.nn.attention_scores import AdditiveAttention, AttentionPooling, BilinearAttention, DotAttention
from fastseq.nn.cache import KeyValueCache
from fastseq.nn.cells import GRUCell, LSTMCell, RNNCell
from fastseq.nn.containers import ModuleDict, ModuleList, Sequential
from fastseq.nn.dropout import Dropout
from fastseq.nn.embedding import Embedding
from fastseq.nn.linear import Linear
from fastseq.nn.masks import causal_mask, pad_sequences, padding_mask
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
    "GELU",
    "GRU",
    "LSTM",
    "MUT1",
    "MUT2",
    "MUT3",
    "RNN",
    "AdditiveAttention",
    "AttentionDecoder",
    "AttentionPooling",
    "BilinearAttention",
    "DotAttention",
    "Dropout",
    "Embedding",
    "GRUCell",
    "KeyValueCache",
    "LSTMCell",
    "LayerNorm",
    "LearnedPositionalEncoding",
    "Linear",
    "LogSoftmax",
    "Module",
    "ModuleDict",
    "ModuleList",
    "MultiheadAttention",
    "OneHotPositionalEncoding",
    "Parameter",
    "RMSNorm",
    "RNNCell",
    "ReLU",
    "RotaryEmbedding",
    "Sequential",
    "Sigmoid",
    "SinusoidalPositionalEncoding",
    "Softmax",
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
