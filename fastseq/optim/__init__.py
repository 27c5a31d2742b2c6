"""Optimisers and gradient clipping."""

from fastseq.optim.adam import Adam, AdamW
from fastseq.optim.clip import clip_grad_norm, clip_grad_value
from fastseq.optim.optimizer import Optimizer
from fastseq.optim.sgd import SGD

__all__ = ["SGD", "Adam", "AdamW", "Optimizer", "clip_grad_norm", "clip_grad_value"]
