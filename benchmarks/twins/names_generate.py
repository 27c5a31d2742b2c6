"""examples/names_generate.py, a GRU of 128 that writes names in a language: nine tenths of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from sklearn.model_selection import train_test_split

import fastseq as fs
from benchmarks.peers.torch_language_model import Step, step_of, torch_step_of
from examples.names_generate import END, invented, read

NAME = "language -> names, GRU 128"
SHARE = 1.0
TOKENS = 102  # of the real names; the words in their place have fewer


def batches(data: str | None) -> list[fs.training.Batch]:
    """One epoch."""
    pairs = read(Path(data) / "names/names_by_language.tsv") if data else invented(np.random.default_rng(0))
    training, _ = train_test_split(pairs, test_size=0.1, stratify=[language for _, language in pairs], random_state=0)
    tokens = sorted({f"<{language}>" for _, language in pairs}) + sorted({letter for name, _ in pairs for letter in name})
    vocabulary = fs.models.Vocabulary(tokens, stop=END)
    texts = [vocabulary.encode([f"<{language}>", *name, END]) for name, language in training]
    return list(fs.training.BucketBatches([text[:-1] for text in texts], [text[1:] for text in texts], batch_size=32, rng=0))


def _model(seed: int) -> fs.models.LanguageModel:
    return fs.models.LanguageModel(TOKENS, 32, 128, cell="gru", rng=seed)


def with_fastseq(seed: int) -> Step:
    """One optimiser step a call."""
    return step_of(_model(seed), 3e-3)


def with_torch(seed: int) -> Step:
    """Likewise, from the same weights."""
    return torch_step_of(_model(seed), 3e-3)
