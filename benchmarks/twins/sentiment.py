"""The model of `examples/sentiment.py`."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.steps import fastseq_step, torch_step
from examples import sentiment

NAME = "sentiment: BiLSTM, attention pooling"
SHARE = 1.0
LR = 2e-3
_training: list[Any] = []  # what the models are built for


def batches(data: str | None) -> list[Any]:
    """One epoch of the example."""
    texts, labels = sentiment.polarity(os.path.join(data, "sentiment")) if data else sentiment.made_up(3000, np.random.default_rng(0))
    training, _ = sentiment.first_fold(texts, labels)
    _training[:] = [texts[i] for i in training], labels[training], "lstm"
    return list(sentiment.built(*_training, seed=0)[1])


def with_fastseq(seed: int) -> Callable[[Any], float]:
    """Of a batch: one step, and the loss before it."""
    return fastseq_step(sentiment.built(*_training, seed=seed, dropout=0.0)[0], LR)


def with_torch(seed: int) -> Callable[[Any], float]:
    """The same from the same weights."""
    from benchmarks.peers.torch_labels import Classifier

    return torch_step(Classifier(sentiment.built(*_training, seed=seed, dropout=0.0)[0]), LR)
