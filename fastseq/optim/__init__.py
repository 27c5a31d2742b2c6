"""Optimisers, gradient clipping and schedules of the learning rate."""

from fastseq.optim.adam import Adam, AdamW
from fastseq.optim.clip import clip_grad_norm, clip_grad_value
from fastseq.optim.optimizer import Optimizer
from fastseq.optim.schedules import CosineDecay, InverseSqrt, ReduceOnPlateau, Schedule, StepLR, WarmupCosine
from fastseq.optim.sgd import SGD

__all__ = [
    "SGD",
    "Adam",
    "AdamW",
    "CosineDecay",
    "InverseSqrt",
    "Optimizer",
    "ReduceOnPlateau",
    "Schedule",
    "StepLR",
    "WarmupCosine",
    "clip_grad_norm",
    "clip_grad_value",
]
