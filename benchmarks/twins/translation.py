"""examples/translation.py with its default, an LSTM and additive attention: all pairs that it trains on."""

from __future__ import annotations

from pathlib import Path

import numpy as np

import fastseq as fs
from benchmarks.peers.torch_seq2seq import Step, step_of, torch_step_of
from examples.translation import dates, hold_out, words
from fastseq.text import read_text

NAME = "translation, LSTM 256 with attention"
SHARE = 1.0
TOKENS = 3456, 4540  # as many as come at least twice in the real pairs, and the special ones; dates have a few
PAIRS = "translation/eng-fra-random20000-le10words.tsv.gz"


def batches(data: str | None) -> list[fs.training.Batch]:
    """One epoch."""
    rng = np.random.default_rng(0)
    split = words if data else list
    texts = [line.split("\t")[:2] for line in read_text(Path(data) / PAIRS).splitlines()] if data else dates(2000, rng)
    training, _ = hold_out([(tuple(split(a)), split(b), b) for a, b in texts], 1000 if data else 100, rng)
    columns = [[pair[n] for pair in training] for n in (0, 1)]
    known = [fs.models.Vocabulary.from_texts(c, separator=" ", min_count=2, start="<s>", stop="</s>") for c in columns]
    ids = tuple([v.encode(text) for text in c] for v, c in zip(known, columns, strict=True))
    return list(fs.training.BucketBatches(ids, batch_size=64, rng=rng))


def _model(seed: int) -> fs.models.Seq2Seq:
    source, target = (fs.models.Vocabulary(map(str, range(n)), separator=" ", start="<s>", stop="</s>") for n in TOKENS)
    return fs.models.Seq2Seq(source, target, 128, 256, rng=seed)


def with_fastseq(seed: int) -> Step:
    """One optimiser step a call."""
    return step_of(_model(seed))


def with_torch(seed: int) -> Step:
    """Likewise, from the same weights."""
    return torch_step_of(_model(seed))
