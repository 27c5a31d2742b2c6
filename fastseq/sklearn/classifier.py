"""SequenceClassifier: one label for a sequence."""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.base import ClassifierMixin
from sklearn.utils import assert_all_finite
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_consistent_length, column_or_1d

from fastseq import functional, models
from fastseq.nn import Module
from fastseq.sklearn._base import SequenceEstimator
from fastseq.sklearn._network import SequenceNetwork


class SequenceClassifier(ClassifierMixin, SequenceEstimator):
    """A recurrent classifier of sequences.

    X may be

    - a list of sequences of any lengths, each (T, I) numbers, or (T,) for one number at each step;
    - an array (n, T, I);
    - an array or table (n, T): T steps of one number each;
    - a list of texts, or of lists of tokens.

    Parameters
    ----------
    cell : {"lstm", "gru", "rnn", "mut1", "mut2", "mut3"}; for texts also "transformer"
    hidden_size : int
    pooling : {"last", "mean", "attention"}; of a transformer "mean" or "attention"
        How the states of all steps become one.
    num_layers : int
    bidirectional : bool
    dropout : float
    embedding_size : int
        Of texts: numbers that stand for a token.
    separator : str
        Of texts: what stands between two tokens; "" makes every character a token.
    min_count : int
        Of texts: tokens seen less often in training are unknown.
    standardize : bool
        Of numbers: subtract their mean and divide by their deviation, both taken from the training data over all steps.
    epochs, batch_size : int
    learning_rate : float
        Adam's at first; it falls to 0 as a cosine.
    max_norm : float
        Gradients are clipped to it.
    patience : int, optional
        Hold out `validation_fraction` of the data and stop after so many epochs in which the loss on it was not the lowest; the
        model of the best epoch is kept.
    validation_fraction : float
    random_state : None, int or numpy.random.RandomState
    verbose : bool
        Show a progress bar.

    Attributes
    ----------
    classes_ : ndarray (classes,)
    model_ : fs.nn.Module
        The trained network; `model_.save(path)` writes it.
    history_ : fs.training.History
        For `fs.plot.curves`.
    vocabulary_ : fs.models.Vocabulary or None
    mean_, scale_ : ndarray (I,)
        What numbers are scaled with.
    n_features_in_ : int
        Columns of a table, or numbers at each step of sequences.

    Examples
    --------
    >>> import numpy as np
    >>> from fastseq.sklearn import SequenceClassifier
    >>> rng = np.random.default_rng(0)
    >>> X = [rng.standard_normal(rng.integers(5, 15)).cumsum() for _ in range(200)]
    >>> y = ["up" if x[-1] > x[0] else "down" for x in X]
    >>> classifier = SequenceClassifier(hidden_size=16, epochs=20, learning_rate=0.01, random_state=0).fit(X[:150], y[:150])
    >>> classifier.score(X[150:], y[150:]) > 0.9
    True
    """

    def __init__(
        self,
        *,
        cell: str = "lstm",
        hidden_size: int = 64,
        pooling: str = "last",
        num_layers: int = 1,
        bidirectional: bool = False,
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
        self.pooling = pooling
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

    def fit(self, X: Any, y: Any) -> SequenceClassifier:
        """Train a new model on sequences X and their labels y (n,); returns the estimator."""
        self._require(y)
        sequences = self._read(X, reset=True)
        labels = column_or_1d(y, warn=True)
        assert_all_finite(labels, input_name="y")
        check_classification_targets(labels)
        check_consistent_length(sequences, labels)
        self.classes_, targets = np.unique(labels, return_inverse=True)
        seed = self._seed()
        self._train(self._network(seed), sequences, targets.astype(np.int64), functional.cross_entropy, seed)
        return self

    def predict(self, X: Any) -> np.ndarray:
        """The likeliest label of each sequence, (n,)."""
        best = self._scores(X).argmax(axis=1)
        return self.classes_[best]

    def predict_proba(self, X: Any) -> np.ndarray:
        """The probability of each of `classes_` for each sequence, (n, classes)."""
        return functional.softmax(self._scores(X))

    def _scores(self, X: Any) -> np.ndarray:
        return np.stack(self._outputs(self._read(X))).astype(np.float64)

    def _network(self, rng: int) -> Module:
        options: dict[str, Any] = {"cell": self.cell, "pooling": self.pooling, "num_layers": self.num_layers, "bidirectional": self.bidirectional,
                   "dropout": self.dropout, "rng": rng}  # fmt: skip
        if self.vocabulary_ is None:
            return SequenceNetwork(self._width, len(self.classes_), self.hidden_size, **options)
        return models.SequenceClassifier(self.vocabulary_, len(self.classes_), self.embedding_size, self.hidden_size, **options)
