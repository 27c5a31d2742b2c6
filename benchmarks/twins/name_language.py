"""The model of `examples/name_language.py`."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.steps import fastseq_step, torch_step
from examples import name_language

NAME = "name -> language: character GRU"
SHARE = 1.0
LR = 3e-3
_training: list[Any] = []  # what the models are built for


def batches(data: str | None) -> list[Any]:
    """One epoch of the example."""
    found = name_language.names_of(os.path.join(data, "names", "names_by_language.tsv")) if data else name_language.letters_of_scripts()
    names, languages = map(np.array, zip(*found, strict=True))
    training, _ = name_language.split(names)
    _training[:] = names[training], languages[training]
    return list(name_language.built(*_training, seed=0)[1])


def with_fastseq(seed: int) -> Callable[[Any], float]:
    """Of a batch: one step, and the loss before it."""
    return fastseq_step(name_language.built(*_training, seed=seed, dropout=0.0)[0], LR)


def with_torch(seed: int) -> Callable[[Any], float]:
    """The same from the same weights."""
    from benchmarks.peers.torch_labels import Classifier

    return torch_step(Classifier(name_language.built(*_training, seed=seed, dropout=0.0)[0]), LR)
