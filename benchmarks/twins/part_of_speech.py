"""The model of `examples/part_of_speech.py`."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.steps import fastseq_step, torch_step
from examples import part_of_speech

NAME = "part of speech: BiLSTM, character BiLSTM"
SHARE = 1.0
LR = 3e-3
_training: list[Any] = []  # what the models are built for


def batches(data: str | None) -> list[Any]:
    """One epoch of the example."""
    found = part_of_speech.treebank(os.path.join(data, "tagging", "ud_ewt"), "train") if data else part_of_speech.made_up(2000, np.random.default_rng(0))
    _training[:] = [found]
    return list(part_of_speech.built(*_training, seed=0)[1])


def with_fastseq(seed: int) -> Callable[[Any], float]:
    """Of a batch: one step, and the loss before it."""
    return fastseq_step(part_of_speech.built(*_training, seed=seed, dropout=0.0)[0], LR)


def with_torch(seed: int) -> Callable[[Any], float]:
    """The same from the same weights."""
    from benchmarks.peers.torch_labels import Tagger

    return torch_step(Tagger(part_of_speech.built(*_training, seed=seed, dropout=0.0)[0]), LR)
