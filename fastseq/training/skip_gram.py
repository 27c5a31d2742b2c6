"""What skip-gram with negative sampling reads: pairs of near words, and words drawn by their frequency (Mikolov et al. 2013)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from fastseq.functional import _check
from fastseq.runtime import next_seed
from fastseq.training.batches import Batch, Seeded


class SkipGramBatches(Seeded):
    """Batches ``(words (N,), neighbours (N,), drawn (K,))`` of a text, for `models.SkipGram`.

    Each epoch every word is kept with probability min(1, sqrt(subsample / f)), f its share of the text; each kept word reaches a
    number of kept words to both sides that is drawn from 1 to `window`; the pairs are shuffled. The K words of a batch are drawn with
    probability in proportion to their count to the power 3/4.

    Parameters
    ----------
    ids : array_like (n,) of integers
        The text.
    vocabulary_size : int
    window : int
        The farthest neighbours.
    drawn : int
        K, for each batch.
    batch_size : int
        N, pairs.
    subsample : float
        Words that are a larger share of the text than this are thinned out; 1 keeps all.
    rng : None, int or numpy.random.Generator
        What the seed of the epochs is drawn from.

    Examples
    --------
    >>> from fastseq.training import SkipGramBatches
    >>> batches = SkipGramBatches([0, 1, 2, 3], 4, window=1, drawn=2, subsample=1, rng=0)
    >>> words, neighbours, drawn = next(iter(batches))
    >>> sorted(zip(words.tolist(), neighbours.tolist())), drawn.shape
    ([(0, 1), (1, 0), (1, 2), (2, 1), (2, 3), (3, 2)], (2,))
    """

    def __init__(
        self,
        ids: Any,
        vocabulary_size: int,
        *,
        window: int = 5,
        drawn: int = 64,
        batch_size: int = 8192,
        subsample: float = 1e-3,
        rng: Any = None,
    ) -> None:
        self.ids = _check.integers("ids", _check.plain("ids", ids))
        _check.shape("ids", self.ids, ("n",))
        if len(self.ids) < 2 or self.ids.min() < 0 or self.ids.max() >= vocabulary_size:
            span = f" from {self.ids.min()} to {self.ids.max()}" if len(self.ids) else ""
            raise ValueError(f"ids: expected at least two ids in [0, {vocabulary_size}), got {len(self.ids)}{span}")
        for name, value in (("window", window), ("drawn", drawn), ("batch_size", batch_size)):
            _check.integer(name, value, 1, 2**31)
        if not 0 < subsample <= 1:
            raise ValueError(f"subsample: expected more than 0 and at most 1, got {subsample}")
        self.window, self.drawn, self.batch_size, self.subsample = window, drawn, batch_size, subsample
        counts = np.bincount(self.ids, minlength=vocabulary_size).astype(np.float64)
        self._keep = np.minimum(1, np.sqrt(subsample * len(self.ids) / np.maximum(counts, 1)))
        self._shares = np.cumsum(counts**0.75)
        self.seed, self.epoch = next_seed(rng), 0

    def __iter__(self) -> Iterator[Batch]:
        epoch = self.epoch
        rng = np.random.default_rng([self.seed, epoch])
        words, neighbours = self._pairs(rng)
        for begin in range(0, len(words), self.batch_size):
            part = slice(begin, begin + self.batch_size)
            yield Batch((words[part], neighbours[part], self._drawn(rng)), len(words[part]))
        self.epoch = epoch + 1

    def _pairs(self, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """All pairs of an epoch, shuffled."""
        text = self.ids[rng.random(len(self.ids)) < self._keep[self.ids]]
        reach = rng.integers(1, self.window + 1, len(text))
        words, neighbours = [], []
        for distance in range(1, self.window + 1):
            left, right = text[:-distance], text[distance:]
            for word, neighbour, near in ((left, right, reach[:-distance] >= distance), (right, left, reach[distance:] >= distance)):
                words.append(word[near])
                neighbours.append(neighbour[near])
        order = rng.permutation(sum(map(len, words)))
        return np.concatenate(words)[order], np.concatenate(neighbours)[order]

    def _drawn(self, rng: np.random.Generator) -> np.ndarray:
        return np.searchsorted(self._shares, rng.random(self.drawn) * self._shares[-1], side="right").astype(np.int64)
