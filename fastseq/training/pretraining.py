"""What BERT is trained on before there are labels: pairs of sentences with hidden words (Devlin et al. 2019)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from fastseq.models import mask_tokens
from fastseq.nn._inputs import checked_size
from fastseq.runtime import next_seed
from fastseq.training.batches import Batch, BucketBatches, Seeded


class MaskedPairs(Seeded):
    """Batches of [CLS] a [SEP] b [SEP] with hidden words, for `fastseq.models.MaskedLanguageModel`.

    Each sentence but the last is the first of a pair once in an epoch. In half of the pairs, b is the sentence that follows a, in the others one
    from anywhere. Pairs and hidden words are drawn anew each epoch, from (seed, epoch) alone. A batch is ``(ids (T, B), lengths (B,), segments
    (T, B), words (T, B), follows (B,))``, as ``model.loss`` takes it.

    Parameters
    ----------
    sentences : sequence of at least two arrays of ids, in the order of their text
    vocabulary : Vocabulary
        With padding, start and stop tokens and "[MASK]".
    batch_size : int
    max_length : int
        Longer pairs are cut: each sentence to half of it.
    probability : float in [0, 1]
        With which a word is hidden; see `fastseq.models.mask_tokens`.
    rng : None, int or numpy.random.Generator
        What the seed is drawn from.

    Examples
    --------
    >>> import fastseq as fs
    >>> special = {"padding": "[PAD]", "unknown": "[UNK]", "start": "[CLS]", "stop": "[SEP]"}
    >>> words = fs.models.Vocabulary(["[MASK]", *"abcdef"], separator=" ", **special)
    >>> sentences = [words.encode(text) for text in ("a b c", "d e", "f a", "b")]
    >>> batches = fs.training.MaskedPairs(sentences, words, batch_size=3, rng=0)
    >>> [[part.shape for part in batch] for batch in batches]
    [[(7, 3), (3,), (7, 3), (7, 3), (3,)]]
    """

    def __init__(
        self, sentences: Sequence[Any], vocabulary: Any, *, batch_size: int, max_length: int = 128, probability: float = 0.15, rng: Any = None
    ) -> None:
        if len(sentences) < 2:
            raise ValueError(f"sentences: expected at least two, got {len(sentences)}")
        if max_length < 5:
            raise ValueError(f"max_length: expected at least 5, a word of each sentence and three marks, got {max_length}")
        self.sentences = [np.asarray(sentence)[: (max_length - 3) // 2] for sentence in sentences]
        self.vocabulary, self.batch_size, self.probability = vocabulary, checked_size("batch_size", batch_size), probability
        mask_tokens(self.sentences[0], vocabulary, 0, probability=probability)  # raises where the vocabulary or the probability do not fit
        self.seed, self.epoch = next_seed(rng), 0

    def __len__(self) -> int:
        return -(-(len(self.sentences) - 1) // self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        epoch, draws = self.epoch, np.random.default_rng([self.seed, self.epoch])
        n = len(self.sentences) - 1
        follows = draws.integers(2, size=n)
        seconds = np.where(follows == 1, np.arange(1, n + 1), draws.integers(n, size=n))
        seconds[(follows == 0) & (seconds > np.arange(n))] += 1  # from anywhere but where it follows
        pairs = [self._pair(self.sentences[first], self.sentences[second]) for first, second in enumerate(seconds)]
        for ids, lengths, segments, _, answers in BucketBatches(tuple(zip(*pairs, strict=True)), follows, batch_size=self.batch_size,
                                                                padding=0, rng=draws):  # fmt: skip
            hidden, words = mask_tokens(ids, self.vocabulary, draws, probability=self.probability)
            yield Batch((hidden, lengths, segments, words, answers), len(answers))
        self.epoch = epoch + 1

    def _pair(self, first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Ids, and which of the two each is of."""
        start, stop = [self.vocabulary.start_id], [self.vocabulary.stop_id]
        return np.concatenate([start, first, stop, second, stop]), np.repeat([0, 1], [len(first) + 2, len(second) + 1])
