"""The model of `examples/intents_slots.py`."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.steps import fastseq_step, torch_step
from examples import intents_slots

NAME = "intents and slots: BiLSTM, two heads"
SHARE = 1.0
LR = 3e-3
_training: list[Any] = []  # what the models are built for


def batches(data: str | None) -> list[Any]:
    """One epoch of the example."""
    found = intents_slots.snips(os.path.join(data, "tagging", "snips"), "train") if data else intents_slots.made_up(2000, np.random.default_rng(0))
    _training[:] = [found]
    return list(intents_slots.built(*_training, seed=0)[1])


def with_fastseq(seed: int) -> Callable[[Any], float]:
    """Of a batch: one step, and the loss before it."""
    return fastseq_step(intents_slots.built(*_training, seed=seed, dropout=0.0)[0], LR)


def with_torch(seed: int) -> Callable[[Any], float]:
    """The same from the same weights."""
    from benchmarks.peers.torch_labels import Tagger

    return torch_step(Tagger(intents_slots.built(*_training, seed=seed, dropout=0.0)[0]), LR)
