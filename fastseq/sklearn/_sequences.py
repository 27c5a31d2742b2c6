"""What the estimators take for X: a table, an array of sequences, a list of sequences of any lengths, or texts."""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.utils import check_array
from sklearn.utils.validation import validate_data


def are_texts(X: Any) -> bool:
    """Whether X holds strings, or sequences of strings."""
    if not isinstance(X, (list, tuple)) and not (isinstance(X, np.ndarray) and X.ndim == 1):
        return False
    first = next((x for x in X if isinstance(x, str) or (_is_sequence(x) and len(x))), None)
    return isinstance(first, str) or (first is not None and isinstance(first[0], str))


def numbers(estimator: Any, X: Any, *, reset: bool, single_steps: bool = False) -> list[np.ndarray]:
    """The sequences of X, each (T, I) of float64.

    Fitting (`reset`) sets the estimator's ``n_features_in_``: a table's columns, or the I of sequences; later calls compare.
    A table's rows are sequences of one number at each step, or with `single_steps` steps of their own.
    """
    table = _is_table(X)
    if table:
        array = validate_data(estimator, X, reset=reset, dtype=np.float64) if reset or estimator._table else check_array(X, dtype=np.float64)
        found = list(array[:, None, :] if single_steps else array[:, :, None])
    else:
        found = [_numbers(x, f"X[{k}]") for k, x in enumerate(X)]
    width = found[0].shape[1] if reset else estimator._width
    for k, x in enumerate(found):
        if x.shape[1] != width:
            raise ValueError(f"X[{k}]: expected shape (T, {width}), got {x.shape}")
    if reset:
        estimator._table, estimator._width = table, width
        if not table:
            estimator.n_features_in_ = width
    return found


def _is_sequence(x: Any) -> bool:
    return isinstance(x, (list, tuple)) or (isinstance(x, np.ndarray) and x.ndim > 0)


def _is_table(X: Any) -> bool:
    """Whether X is two-dimensional, or nothing that is made of sequences: scikit-learn then says what is wrong with it."""
    if isinstance(X, np.ndarray) and X.ndim != 1:
        return X.ndim != 3
    if not isinstance(X, (list, tuple, np.ndarray)) or not len(X) or not all(map(_is_sequence, X)):
        return True
    return len({len(x) for x in X}) == 1 and not (len(X[0]) and _is_sequence(X[0][0]))


def _numbers(x: Any, name: str) -> np.ndarray:
    """One sequence as (T, I)."""
    array = check_array(x, dtype=np.float64, ensure_2d=False, ensure_min_samples=1, input_name=name)
    return array[:, None] if array.ndim == 1 else array
