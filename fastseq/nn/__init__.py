"""Layers: Module, Parameter, and the layers that own parameters."""

from fastseq.nn.activations import LogSoftmax, ReLU, Sigmoid, Softmax, Tanh
from fastseq.nn.containers import ModuleDict, ModuleList, Sequential
from fastseq.nn.dropout import Dropout
from fastseq.nn.embedding import Embedding
from fastseq.nn.linear import Linear
from fastseq.nn.module import Module, Parameter
from fastseq.nn.recurrent import LSTM

__all__ = [
    "LSTM",
    "Dropout",
    "Embedding",
    "Linear",
    "LogSoftmax",
    "Module",
    "ModuleDict",
    "ModuleList",
    "Parameter",
    "ReLU",
    "Sequential",
    "Sigmoid",
    "Softmax",
    "Tanh",
]
