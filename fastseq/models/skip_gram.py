"""Skip-gram with negative sampling: word vectors that say which words stand near which (Mikolov et al. 2013)."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastseq import functional
from fastseq.autograd import Tensor
from fastseq.backends import to_cpu
from fastseq.models.vocabulary import as_vocabulary
from fastseq.nn import Embedding, Module
from fastseq.nn._inputs import brought, id_input
from fastseq.runtime import generator


class SkipGram(Module):
    """Two vectors for each word, one as itself and one as a neighbour; the score of a pair is their product.

    Trained to tell the pairs of a text from pairs with drawn words, it puts words that are used alike near each other. The
    gradients of both tables are row-sparse: train with `optim.Adagrad`, `optim.SparseAdam` or plain `optim.SGD`, on the batches of
    `training.SkipGramBatches`.

    Parameters
    ----------
    vocabulary : Vocabulary, or what `as_vocabulary` takes
    embedding_size : int
        Numbers in a vector.
    negatives : float
        As how many drawn pairs those of a batch count, for each pair of the text.
    dtype : float32 or float64
    rng : None, int or numpy.random.Generator

    Attributes
    ----------
    vocabulary : Vocabulary
    words : nn.Embedding
        The words' vectors, the ones that are used afterwards; they start uniform in +-1 / (2 embedding_size).
    neighbours : nn.Embedding
        The words' vectors as neighbours; they start at zero.

    Examples
    --------
    >>> import numpy as np, fastseq as fs
    >>> words = fs.models.Vocabulary(["tea", "cup", "sea", "ship"], separator=" ")
    >>> batches = fs.training.SkipGramBatches(words.encode("tea cup sea ship " * 50), 4, window=1, subsample=1, rng=0)
    >>> model = fs.models.SkipGram(words, 8, rng=0)
    >>> model(np.array([0, 1]), np.array([1, 0])).shape
    (2,)
    >>> adagrad = fs.optim.Adagrad(model.parameters(), lr=0.5)
    >>> history = fs.training.fit(model, batches, optimizer=adagrad, epochs=30, progress=False)
    >>> model.nearest("tea", 1)[0][0]  # both stand beside "cup" and "ship"
    'sea'
    """

    def __init__(
        self, vocabulary: Any, embedding_size: int = 100, *, negatives: float = 5.0, dtype: Any = np.float32, rng: Any = None
    ) -> None:
        rng = generator(rng)
        self.vocabulary = as_vocabulary(vocabulary)
        if not negatives > 0:
            raise ValueError(f"negatives: expected more than 0, got {negatives}")
        self.negatives = float(negatives)
        self.words = Embedding(len(self.vocabulary), embedding_size, sparse=True, dtype=dtype, rng=rng)
        self.neighbours = Embedding(len(self.vocabulary), embedding_size, sparse=True, dtype=dtype, rng=rng)
        self.words.weight.data[...] = rng.uniform(-0.5, 0.5, self.words.weight.shape) / embedding_size
        self.neighbours.weight.data[...] = 0

    def forward(self, words: Any, neighbours: Any) -> Any:
        """Scores (N,) of pairs: the ids of words (N,) and of one neighbour of each (N,)."""
        return (self.words(words) * self.neighbours(neighbours)).sum(axis=-1)

    def loss(self, words: Any, neighbours: Any, drawn: Any) -> Any:
        """The mean over the pairs of -log s(score) - `negatives` times the mean over the drawn words of log s(-score).

        Parameters
        ----------
        words, neighbours : (N,) integers
            The pairs of a text.
        drawn : (K,) integers
            Words that are neighbours of none of them but by chance. All pairs share them, so that their scores are one matrix product.

        Returns
        -------
        Tensor of one element
        """
        table = self.words.weight
        one, other, chance = (Tensor(brought(id_input(ids, name), table, name))
                              for ids, name in ((words, "words"), (neighbours, "neighbours"), (drawn, "drawn")))  # fmt: skip
        vectors = self.words(one)
        seen = (vectors * self.neighbours(other)).sum(axis=-1)
        against = functional.linear(vectors, self.neighbours(chance))
        return functional.negative_sampling_loss(seen, against, count=self.negatives)

    def similarity(self, one: str, other: str) -> float:
        """The cosine of the angle between two words' vectors."""
        a, b = (to_cpu(self.words.weight.data[self.vocabulary.id(word)]) for word in (one, other))
        return float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))

    def nearest(self, word: str, count: int = 10) -> list[tuple[str, float]]:
        """The words whose vectors point most nearly the way of this word's, with the cosines, the nearest first."""
        table, own = to_cpu(self.words.weight.data), self.vocabulary.id(word)
        cosines = table @ table[own] / (np.linalg.norm(table, axis=1) * np.linalg.norm(table[own]))
        order = [int(n) for n in np.argsort(-cosines, kind="stable") if n != own]
        return [(self.vocabulary.tokens[n], float(cosines[n])) for n in order[:count]]

    def configuration(self) -> dict[str, Any]:
        """The arguments of the class."""
        return {
            "vocabulary": self.vocabulary.configuration(),
            "embedding_size": self.words.embedding_dim,
            "negatives": self.negatives,
            "dtype": self.words.dtype,
        }
