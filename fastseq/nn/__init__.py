"""Layers: Module, Parameter, and the layers that own parameters."""

from fastseq.nn.activations import GELU, LogSoftmax, ReLU, Sigmoid, Softmax, Tanh
from fastseq.nn.attention_decoder import AttentionDecoder
from fastseq.nn.attention_scores import AdditiveAttention, AttentionPooling, BilinearAttention, DotAttention
from fastseq.nn.cells import GRUCell, LSTMCell, RNNCell
from fastseq.nn.containers import ModuleDict, ModuleList, Sequential
from fastseq.nn.dropout import Dropout
from fastseq.nn.embedding import Embedding
from fastseq.nn.linear import Linear
from fastseq.nn.module import Module, Parameter
from fastseq.nn.norm import LayerNorm, RMSNorm
from fastseq.nn.recurrent import GRU, LSTM, MUT1, MUT2, MUT3, RNN

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
    "LSTMCell",
    "LayerNorm",
    "Linear",
    "LogSoftmax",
    "Module",
    "ModuleDict",
    "ModuleList",
    "Parameter",
    "RMSNorm",
    "RNNCell",
    "ReLU",
    "Sequential",
    "Sigmoid",
    "Softmax",
    "Tanh",
]
