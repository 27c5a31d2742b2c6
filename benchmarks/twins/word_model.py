"""examples/word_model.py with its default, an LSTM of 200 whose head is the embedding: 95 % of a text."""

from __future__ import annotations

from pathlib import Path

import fastseq as fs
from benchmarks.peers.torch_language_model import Step, step_of, torch_step_of
from examples.kneser_ney import corpus

NAME = "words, LSTM 200"
SHARE = 1.0
WORDS = 10_000


def batches(data: str | None) -> list[tuple]:
    """One epoch."""
    _, training, _ = corpus(Path(data) / "text/bronte.txt.gz" if data else None, WORDS)
    return list(fs.training.TextStreams(training, 16, 32))


def _model(seed: int) -> fs.models.LanguageModel:
    return fs.models.LanguageModel(WORDS + 1, 200, 200, tie_weights=True, rng=seed)


def with_fastseq(seed: int) -> Step:
    """One optimiser step a call."""
    return step_of(_model(seed), 4e-3, carry=True)


def with_torch(seed: int) -> Step:
    """Likewise, from the same weights."""
    return torch_step_of(_model(seed), 4e-3, carry=True)
