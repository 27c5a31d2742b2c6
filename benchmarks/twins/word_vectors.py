"""examples/word_vectors.py: skip-gram of 100 numbers a word, Adagrad on row-sparse gradients; all pairs of one epoch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import fastseq as fs
from examples.word_vectors import RATE, prepare
from fastseq.text import default_text, read_text

NAME = "word vectors, skip-gram 100"
SHARE = 1.0
WORDS, DIM = 7423, 100  # of the novels, what comes five times; the default text has fewer
Step = Callable[[Any], float]


def batches(data: str | None) -> list[fs.training.Batch]:
    """One epoch."""
    vocabulary, ids = prepare(read_text(Path(data) / "text/bronte.txt.gz") if data else default_text())
    return list(fs.training.SkipGramBatches(ids, len(vocabulary), rng=0))


def with_fastseq(seed: int) -> Step:
    """One optimiser step a call."""
    model = fs.models.SkipGram(WORDS, DIM, rng=seed)
    adagrad = fs.optim.Adagrad(model.parameters(), lr=RATE)

    def step(batch: Any) -> float:
        loss = model.loss(*batch)
        adagrad.zero_grad()
        loss.backward()
        adagrad.step()
        return loss.item()

    return step


def with_torch(seed: int) -> Step:
    """Likewise, from the same weights."""
    import torch

    torch.sparse.check_sparse_tensor_invariants.disable()  # its default, which it warns of until it is said
    model = fs.models.SkipGram(WORDS, DIM, rng=seed)
    words, neighbours = (
        torch.nn.Embedding.from_pretrained(torch.from_numpy(table.weight.data.copy()), freeze=False, sparse=True)
        for table in (model.words, model.neighbours)
    )
    adagrad = torch.optim.Adagrad([words.weight, neighbours.weight], lr=RATE)
    softplus = torch.nn.functional.softplus

    def step(batch: Any) -> float:
        near, seen, drawn = map(torch.from_numpy, batch)
        vectors = words(near)
        scores = (vectors * neighbours(seen)).sum(1)
        against = vectors @ neighbours(drawn).T
        loss = (softplus(-scores) + model.negatives * softplus(against).mean(1)).mean()
        adagrad.zero_grad()
        loss.backward()
        adagrad.step()
        return loss.item()

    return step
