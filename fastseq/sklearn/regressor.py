"""SequenceRegressor: one or several numbers for a sequence, such as the next values of a series."""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.base import RegressorMixin
from sklearn.utils import check_array
from sklearn.utils.validation import check_consistent_length

from fastseq import functional
from fastseq.models import Forecaster
from fastseq.sklearn._base import SequenceEstimator, _statistics

_LOSSES = {"squared_error": functional.mse_loss, "absolute_error": functional.l1_loss}


class SequenceRegressor(RegressorMixin, SequenceEstimator):
    """A recurrent regressor of sequences, and a forecaster where y has the values that follow each window: `fs.models.Forecaster`.

    X may be

    - a list of sequences of any lengths, each (T, I) numbers, or (T,) for one number at each step;
    - an array (n, T, I);
    - an array or table (n, T): T steps of one number each.

    Parameters
    ----------
    cell : {"lstm", "gru", "rnn", "mut1", "mut2", "mut3"}
    hidden_size : int
    num_layers : int
    dropout : float
    loss : {"squared_error", "absolute_error"}
        What training makes small.
    standardize : bool
        Subtract the mean and divide by the deviation of the training data: of X over all steps, of each column of y. Predictions are
        in the units of y.
    epochs, batch_size, learning_rate, max_norm, patience, validation_fraction, random_state, verbose
        As of `SequenceClassifier`.

    Attributes
    ----------
    model_, history_, mean_, scale_, n_features_in_
        As of `SequenceClassifier`.
    target_mean_, target_scale_ : ndarray () or (outputs,)
        What y is scaled with.

    Examples
    --------
    >>> import numpy as np
    >>> from fastseq.sklearn import SequenceRegressor
    >>> wave = 20 + np.sin(np.arange(400) / 3)
    >>> windows = np.lib.stride_tricks.sliding_window_view(wave, 25)
    >>> X, y = windows[:, :20], windows[:, 20:]                       # the next five values
    >>> forecaster = SequenceRegressor(hidden_size=16, epochs=20, learning_rate=0.01, random_state=0).fit(X[:300], y[:300])
    >>> forecaster.score(X[330:], y[330:]) > 0.95
    True
    """

    def __init__(
        self,
        *,
        cell: str = "lstm",
        hidden_size: int = 64,
        num_layers: int = 1,
        dropout: float = 0.0,
        loss: str = "squared_error",
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
        self.dropout = dropout
        self.loss = loss
        self.standardize = standardize
        self.epochs = epochs
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.max_norm = max_norm
        self.patience = patience
        self.validation_fraction = validation_fraction
        self.random_state = random_state
        self.verbose = verbose

    def fit(self, X: Any, y: Any) -> SequenceRegressor:
        """Train a new model on sequences X and their numbers y, (n,) or (n, outputs); returns the estimator."""
        if self.loss not in _LOSSES:
            raise ValueError(f"loss: expected one of {', '.join(_LOSSES)}, got {self.loss!r}")
        self._require(y)
        sequences = self._read(X, reset=True)
        wanted = check_array(y, dtype=np.float64, ensure_2d=False, input_name="y", estimator=self)
        check_consistent_length(sequences, wanted)
        self.target_mean_, self.target_scale_ = _statistics(wanted, self.standardize)
        targets = ((wanted - self.target_mean_) / self.target_scale_).astype(np.float32).reshape(len(wanted), -1)
        seed = self._seed()
        model = Forecaster(
            self._width, self.hidden_size, targets.shape[1], cell=self.cell, num_layers=self.num_layers, dropout=self.dropout, rng=seed
        )
        self._train(model, sequences, targets, _LOSSES[self.loss], seed)
        return self

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        return tags

    def _read_texts(self, X: Any, reset: bool) -> list[np.ndarray]:
        raise TypeError("X: expected sequences of numbers, got texts")

    def predict(self, X: Any) -> np.ndarray:
        """The numbers of each sequence, shaped and scaled as y was."""
        outputs = np.stack(self._outputs(self._read(X))).astype(np.float64)
        return outputs.reshape(len(outputs), *self.target_mean_.shape) * self.target_scale_ + self.target_mean_
