"""examples/phonemes.py, a GRU with additive attention: a quarter of the words that it trains on."""

from __future__ import annotations

from pathlib import Path

import numpy as np

import fastseq as fs
from benchmarks.peers.torch_seq2seq import Step, step_of, torch_step_of
from examples.phonemes import default_dictionary, read_dictionary

NAME = "spelling to phonemes, GRU 192 with attention"
SHARE = 0.25
LETTERS, PHONEMES = 60, 80  # at least as many as there are
BATCH = 128


def batches(data: str | None) -> list[fs.training.Batch]:
    """The first quarter of an epoch."""
    dictionary = read_dictionary(str(Path(data) / "g2p/cmudict.gz")) if data else default_dictionary()
    words = np.random.default_rng(0).permutation(sorted(dictionary)).tolist()
    pairs = [(word, phonemes) for word in words[len(words) // 20 :] for phonemes in dictionary[word]]
    letters, phonemes = (fs.models.Vocabulary(sorted({t for pair in pairs for t in pair[n]}), start="<s>", stop="</s>") for n in (0, 1))
    ids = [letters.encode(word) for word, _ in pairs], [phonemes.encode(said) for _, said in pairs]
    whole = list(fs.training.BucketBatches(ids, batch_size=BATCH, rng=0))
    return whole[: round(SHARE * len(whole))]


def _model(seed: int) -> fs.models.Seq2Seq:
    source, target = (fs.models.Vocabulary(map(str, range(n)), separator=" ", start="<s>", stop="</s>") for n in (LETTERS, PHONEMES))
    return fs.models.Seq2Seq(source, target, 64, 192, cell="gru", rng=seed)


def with_fastseq(seed: int) -> Step:
    """One optimiser step a call."""
    return step_of(_model(seed))


def with_torch(seed: int) -> Step:
    """Likewise, from the same weights."""
    return torch_step_of(_model(seed))
