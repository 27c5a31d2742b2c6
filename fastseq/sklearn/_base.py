"""What the estimators share: reading X, scaling, training by `fastseq.training.fit`, and running the model over new sequences."""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.base import BaseEstimator
from sklearn.model_selection import train_test_split
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted

from fastseq import optim, training
from fastseq.models import Vocabulary
from fastseq.nn import Module, pad_sequences
from fastseq.nn._inputs import checked_size
from fastseq.sklearn._sequences import are_texts, numbers

_CHUNK = 256  # sequences that a prediction runs together


class SequenceEstimator(BaseEstimator):
    """The parent of the estimators; not one of its own. Attributes named below without a value are its subclasses' parameters."""

    standardize: bool
    separator: str
    min_count: int
    random_state: Any
    batch_size: int
    learning_rate: float
    epochs: int
    max_norm: float
    patience: int | None
    validation_fraction: float
    verbose: bool
    vocabulary_: Any
    model_: Module

    def _read(self, X: Any, *, reset: bool = False, single_steps: bool = False) -> list[np.ndarray]:
        """The sequences of X as the model takes them: ids (T,), or scaled numbers (T, I)."""
        if not reset:
            check_is_fitted(self)
        X = np.asarray(X) if getattr(X, "ndim", 0) == 1 else X  # a column of a data frame
        if are_texts(X) if reset else self.vocabulary_ is not None:
            return self._read_texts(X, reset)
        found = numbers(self, X, reset=reset, single_steps=single_steps)
        if reset:
            self.vocabulary_ = None
            self.mean_, self.scale_ = _statistics(np.concatenate(found), self.standardize)
        return [((x - self.mean_) / self.scale_).astype(np.float32) for x in found]

    def _read_texts(self, X: Any, reset: bool) -> list[np.ndarray]:
        """Ids of the tokens of texts."""
        if not are_texts(X):
            raise TypeError(f"X: expected texts, or lists of tokens, as in fit, got {type(X).__name__}")
        if reset:
            self.vocabulary_ = Vocabulary.from_texts(X, separator=self.separator, min_count=self.min_count)
        return [self.vocabulary_.encode(x) for x in X]

    def _require(self, y: Any) -> None:
        """ValueError where there is no target; the sentence is scikit-learn's."""
        if y is None:
            raise ValueError(f"This {type(self).__name__} estimator requires y to be passed, but the target y is None.")

    def _train(self, model: Module, sequences: list[np.ndarray], targets: Any, loss: Any, seed: int) -> None:
        """Fit the model and keep it, with its history."""
        held_out, epochs = None, checked_size("epochs", self.epochs)
        if self.patience is not None:
            parts = train_test_split(sequences, targets, test_size=self.validation_fraction, random_state=seed)
            sequences, validation, targets, validation_targets = parts
            held_out = training.BucketBatches(validation, validation_targets, batch_size=_CHUNK, rng=seed)
        batches = training.BucketBatches(sequences, targets, batch_size=self.batch_size, rng=seed)
        adam = optim.Adam(model.parameters(), lr=self.learning_rate)
        steps = epochs * -(-len(sequences) // self.batch_size)
        self.history_ = training.fit(
            model, batches, loss=loss, optimizer=adam, epochs=epochs, validation=held_out, max_norm=self.max_norm,
            schedule=optim.CosineDecay(adam, steps), progress=bool(self.verbose),
            callbacks=[] if self.patience is None else [training.EarlyStopping(self.patience)],
        )  # fmt: skip
        self.model_ = model
        if self.history_.stopped == "interrupted":
            raise KeyboardInterrupt  # which ends a search over estimators too; this one can be used as it is

    def _seed(self) -> int:
        """One number that everything random in a fit follows from."""
        return int(check_random_state(self.random_state).randint(2**31))

    def _outputs(self, sequences: list[np.ndarray]) -> list[np.ndarray]:
        """What the model says about each sequence, in their order; those of about one length run together."""
        order = sorted(range(len(sequences)), key=lambda k: len(sequences[k]))
        found: list[Any] = [None] * len(sequences)
        for start in range(0, len(order), _CHUNK):
            rows = order[start : start + _CHUNK]
            batch, lengths = pad_sequences([sequences[k] for k in rows], T=max(1, len(sequences[rows[-1]])))
            for k, output in zip(rows, self._by_row(self.model_(batch, lengths)), strict=True):
                found[k] = output
        return found

    def _by_row(self, outputs: Any) -> Any:
        """The model's outputs with the batch's rows first."""
        return outputs

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.three_d_array = True
        tags.target_tags.required = True
        return tags


def _statistics(x: np.ndarray, wanted: bool) -> tuple[np.ndarray, np.ndarray]:
    """Mean and deviation of the columns, 1 for a deviation of about 0; without scaling 0 and 1."""
    if not wanted:
        return np.zeros(x.shape[1:]), np.ones(x.shape[1:])
    mean, deviation = x.mean(axis=0), x.std(axis=0)
    constant = deviation <= 1e-12 * np.abs(mean)
    return mean, np.where(constant, 1.0, deviation)
