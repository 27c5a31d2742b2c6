"""The first part of examples/gpt.py, a transformer that learns to write: subwords of 95 % of a text."""

from __future__ import annotations

from pathlib import Path

import fastseq as fs
from benchmarks.peers.torch_language_model import Step, step_of, torch_step_of
from fastseq.text import default_text, read_text

NAME = "GPT, 2 layers of 128"
SHARE = 1.0
TOKENS = 4000


def batches(data: str | None) -> list[tuple]:
    """One epoch."""
    text = read_text(Path(data) / "text/bronte.txt.gz") if data else default_text()
    ids = fs.models.SubwordVocabulary.from_texts([text], size=TOKENS, stop="<end>").encode(text)
    return list(fs.training.TextStreams(ids[: round(0.95 * len(ids))], 32, 64))


def _model(seed: int) -> fs.models.LanguageModel:
    options = {"num_layers": 2, "heads": 4, "tie_weights": True, "max_length": 128}
    return fs.models.LanguageModel(TOKENS, 128, 512, cell="transformer", rng=seed, **options)


def with_fastseq(seed: int) -> Step:
    """One optimiser step a call."""
    return step_of(_model(seed), 2e-3)


def with_torch(seed: int) -> Step:
    """Likewise, from the same weights."""
    return torch_step_of(_model(seed), 2e-3)
