"""Layers: Module, Parameter, and the layers that own parameters."""

from fastseq.nn.activations import LogSoftmax, ReLU, Sigmoid, Softmax, Tanh
from fastseq.nn.attention_decoder import AttentionDecoder
from fastseq.nn.cells import GRUCell, LSTMCell, RNNCell
from fastseq.nn.containers import ModuleDict, ModuleList, Sequential
from fastseq.nn.dropout import Dropout
from fastseq.nn.embedding import Embedding
from fastseq.nn.linear import Linear
from fastseq.nn.module import Module, Parameter
from fastseq.nn.recurrent import GRU, LSTM, MUT1, MUT2, MUT3, RNN

__all__ = [
    "GRU",
    "LSTM",
    "MUT1",
    "MUT2",
    "MUT3",
    "RNN",
    "AttentionDecoder",
    "Dropout",
    "Embedding",
    "GRUCell",
    "LSTMCell",
    "Linear",
    "LogSoftmax",
    "Module",
    "ModuleDict",
    "ModuleList",
    "Parameter",
    "RNNCell",
    "ReLU",
    "Sequential",
    "Sigmoid",
    "Softmax",
    "Tanh",
]
