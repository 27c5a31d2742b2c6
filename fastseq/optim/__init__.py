"""Optimisers, gradient clipping and schedules of the learning rate."""

from fastseq.optim.adagrad import Adagrad
from fastseq.optim.adam import Adam, AdamW, SparseAdam
from fastseq.optim.clip import clip_grad_norm, clip_grad_value
from fastseq.optim.optimizer import Optimizer
from fastseq.optim.rmsprop import RMSprop
from fastseq.optim.schedules import CosineDecay, InverseSqrt, ReduceOnPlateau, Schedule, StepLR, WarmupCosine
from fastseq.optim.sgd import SGD

__all__ = [
    "SGD",
    "Adagrad",
    "Adam",
    "AdamW",
    "CosineDecay",
    "InverseSqrt",
    "Optimizer",
    "RMSprop",
    "ReduceOnPlateau",
    "Schedule",
    "SparseAdam",
    "StepLR",
    "WarmupCosine",
    "clip_grad_norm",
    "clip_grad_value",
]
