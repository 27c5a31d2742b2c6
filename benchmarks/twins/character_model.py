"""examples/character_model.py with its default, an LSTM of 256: nine tenths of a text."""

from __future__ import annotations

from pathlib import Path

import fastseq as fs
from benchmarks.peers.torch_language_model import Step, step_of, torch_step_of
from fastseq.text import default_text, read_text

NAME = "characters, LSTM 256"
SHARE = 1.0
CHARACTERS = 103  # of the default text; the real one has 65


def batches(data: str | None) -> list[tuple]:
    """One epoch."""
    text = read_text(Path(data) / "text/tinyshakespeare.txt.gz") if data else default_text()
    ids = fs.models.Vocabulary(text).encode(text)
    return list(fs.training.TextStreams(ids[: len(ids) - len(ids) // 10], 16, 32))


def _model(seed: int) -> fs.models.LanguageModel:
    return fs.models.LanguageModel(CHARACTERS, 64, 256, rng=seed)


def with_fastseq(seed: int) -> Step:
    """One optimiser step a call."""
    return step_of(_model(seed), 6e-3, carry=True)


def with_torch(seed: int) -> Step:
    """Likewise, from the same weights."""
    return torch_step_of(_model(seed), 6e-3, carry=True)
