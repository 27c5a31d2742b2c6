"""SequenceTagger: a label for every step."""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.utils.validation import check_consistent_length, check_is_fitted, column_or_1d

from fastseq import functional, models
from fastseq.nn import Module
from fastseq.sklearn._base import SequenceEstimator
from fastseq.sklearn._network import SequenceNetwork


class SequenceTagger(SequenceEstimator):
    """A recurrent tagger: it reads a whole sequence, in both directions, and labels each of its steps.

    X may be

    - a list of sequences of any lengths, each (T, I) numbers, or (T,) for one number at each step;
    - an array (n, T, I), or an array or table (n, T): T steps of one number each;
    - a list of texts, or of lists of tokens.

    y is a list of as many sequences of tags, each as long as its sequence of X. Where y has one tag (n,) for each row of a table,
    the rows are sequences of a single step.

    Parameters
    ----------
    cell : {"lstm", "gru", "rnn", "mut1", "mut2", "mut3"}
    hidden_size : int
    num_layers : int
    bidirectional : bool
        False: a tag depends on what came before it only.
    dropout : float
    embedding_size : int
        Of texts: numbers that stand for a token.
    separator : str
        Of texts: what stands between two tokens; "" makes every character a token.
    min_count : int
        Of texts: tokens seen less often in training are unknown.
    standardize, epochs, batch_size, learning_rate, max_norm, patience, validation_fraction, random_state, verbose
        As of `SequenceClassifier`.

    Attributes
    ----------
    classes_ : ndarray (tags,)
    model_, history_, vocabulary_, mean_, scale_, n_features_in_
        As of `SequenceClassifier`.

    Examples
    --------
    >>> from fastseq.sklearn import SequenceTagger
    >>> X = [["we", "light", "it"], ["a", "light"], ["the", "light", "is", "on"], ["we", "light", "a", "light"]] * 8
    >>> y = [["-", "verb", "-"], ["-", "noun"], ["-", "noun", "-", "-"], ["-", "verb", "-", "noun"]] * 8
    >>> tagger = SequenceTagger(hidden_size=16, embedding_size=8, epochs=20, learning_rate=0.03, random_state=0).fit(X, y)
    >>> [tags.tolist() for tags in tagger.predict(["the light", "we light it"])]
    [['-', 'noun'], ['-', 'verb', '-']]
    """

    def __init__(
        self,
        *,
        cell: str = "lstm",
        hidden_size: int = 64,
        num_layers: int = 1,
        bidirectional: bool = True,
        dropout: float = 0.0,
        embedding_size: int = 64,
        separator: str = " ",
        min_count: int = 1,
        standardize: bool = True,
        epochs: int = 20,
        batch_size: int = 32,
        learning_rate: float = 3e-3,
        max_norm: float = 1.0,
        patience: int | None = None,
        validation_fraction: float = 0.1,
        random_state: Any = None,
        verbose: bool = False,
    ) -> None:
        self.cell = cell
        self.hidden_size = hidden_size
        self.num_layers = num_layers
        self.bidirectional = bidirectional
        self.dropout = dropout
        self.embedding_size = embedding_size
        self.separator = separator
        self.min_count = min_count
        self.standardize = standardize
        self.epochs = epochs
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.max_norm = max_norm
        self.patience = patience
        self.validation_fraction = validation_fraction
        self.random_state = random_state
        self.verbose = verbose

    def fit(self, X: Any, y: Any) -> SequenceTagger:
        """Train a new model on sequences X and the tags y of their steps; returns the estimator."""
        self._require(y)
        self._single_steps = np.ndim(next(iter(y), ())) == 0
        sequences = self._read(X, reset=True, single_steps=self._single_steps)
        tags = self._tags(y)
        check_consistent_length(sequences, tags)
        for k, (sequence, row) in enumerate(zip(sequences, tags, strict=True)):
            if len(sequence) != len(row):
                raise ValueError(f"y[{k}]: expected {len(sequence)} tags, as many as X[{k}] has steps, got {len(row)}")
        self.classes_, ids = np.unique(np.concatenate(tags), return_inverse=True)
        ends = np.cumsum([len(row) for row in tags])[:-1]
        seed = self._seed()
        self._train(self._network(seed), sequences, np.split(ids.astype(np.int64), ends), _step_loss, seed)
        return self

    def predict(self, X: Any) -> Any:
        """The likeliest tags: a list of ndarray (T,); an array (n,) where the tagger was fitted on single steps."""
        return self._joined([self.classes_[scores.argmax(axis=1)] for scores in self._scores(X)])

    def predict_proba(self, X: Any) -> Any:
        """The probability of each of `classes_` at each step: a list of ndarray (T, tags); (n, tags) for single steps."""
        return self._joined([functional.softmax(scores.astype(np.float64)) for scores in self._scores(X)])

    def score(self, X: Any, y: Any) -> float:
        """The share of the steps of X whose tags are those of y."""
        predicted = self.predict(X)
        return float(np.mean(np.concatenate(predicted if not self._single_steps else [predicted]) == np.concatenate(self._tags(y))))

    def _tags(self, y: Any) -> list[np.ndarray]:
        """The tags of each sequence, (T,)."""
        return list(column_or_1d(y)[:, None]) if self._single_steps else [column_or_1d(row) for row in y]

    def _scores(self, X: Any) -> list[np.ndarray]:
        """(T, tags) of each sequence."""
        check_is_fitted(self)
        sequences = self._read(X, single_steps=self._single_steps)
        return [scores[: len(x)] for scores, x in zip(self._outputs(sequences), sequences, strict=True)]

    def _by_row(self, outputs: Any) -> Any:
        return outputs.swapaxes(0, 1)

    def _joined(self, rows: list[np.ndarray]) -> Any:
        return np.concatenate(rows) if self._single_steps else rows

    def _network(self, rng: int) -> Module:
        options: dict[str, Any] = {"cell": self.cell, "num_layers": self.num_layers, "bidirectional": self.bidirectional, "dropout": self.dropout, "rng": rng}
        if self.vocabulary_ is None:
            return SequenceNetwork(self._width, len(self.classes_), self.hidden_size, pooling=None, **options)
        return models.SequenceTagger(self.vocabulary_, len(self.classes_), self.embedding_size, self.hidden_size, **options)


def _step_loss(scores: Any, targets: np.ndarray) -> Any:
    """Cross-entropy of (T, B, tags) scores; -100 marks what is past a row's end."""
    return functional.cross_entropy(scores.reshape(-1, scores.shape[2]), targets.reshape(-1))
