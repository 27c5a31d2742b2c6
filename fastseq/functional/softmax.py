"""softmax and its logarithm."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from fastseq.autograd import Array, ArrayOrTensor, Tensor, result
from fastseq.backends import backend_of
from fastseq.functional import _check


def softmax(x: ArrayOrTensor, axis: int = -1) -> ArrayOrTensor:
    """exp(x) / sum(exp(x)) along an axis; zeros where all of x is -inf.

    Parameters
    ----------
    x : ndarray or Tensor, float32 or float64
    axis : int

    Returns
    -------
    ndarray or Tensor of x's shape

    Raises
    ------
    TypeError, ValueError
        If x is not a float32 or float64 array, or has no such axis.

    Examples
    --------
    >>> import numpy as np
    >>> import fastseq as fs
    >>> fs.functional.softmax(np.zeros((1, 4)))
    array([[0.25, 0.25, 0.25, 0.25]])
    """
    values = _check.floats("x", x)
    axis = _check.axis("axis", axis, values.ndim)
    backend = backend_of(values)
    y_last = backend.softmax_forward(values.swapaxes(axis, -1))

    def backward(dy: Array) -> tuple[Array]:
        # y = exp(x) / sum(exp(x))
        return (backend.softmax_backward(y_last, dy.swapaxes(axis, -1)).swapaxes(axis, -1),)

    return result(y_last.swapaxes(axis, -1), (x,), backward, "softmax")


def log_softmax(x: ArrayOrTensor, axis: int = -1) -> ArrayOrTensor:
    """X - log(sum(exp(x))) along an axis. For a loss, `cross_entropy` does it and the choice of the target in one pass.

    Parameters
    ----------
    x : ndarray or Tensor, float32 or float64
    axis : int

    Returns
    -------
    ndarray or Tensor of x's shape

    Raises
    ------
    TypeError, ValueError
        If x is not a float32 or float64 array, or has no such axis.

    Examples
    --------
    >>> import numpy as np
    >>> import fastseq as fs
    >>> np.exp(fs.functional.log_softmax(np.zeros((1, 4))))
    array([[0.25, 0.25, 0.25, 0.25]])
    """
    values = _check.floats("x", x)
    axis = _check.axis("axis", axis, values.ndim)
    backend = backend_of(values)
    last = values.swapaxes(axis, -1)
    lse = _log_sum_exp(backend, last)
    y_last = last - lse

    def backward(dy: Array) -> tuple[Array]:
        # y = x - log(sum(exp(x))), and the logarithm's derivative is exp(y)
        dy = dy.swapaxes(axis, -1)
        dx = dy - backend.pointwise_forward(y_last, function="exp") * dy.sum(axis=-1, keepdims=True)
        return (dx.swapaxes(axis, -1),)

    return result(y_last.swapaxes(axis, -1), (x,), backward, "log_softmax")


def _log_sum_exp(backend: Any, x: Array) -> Array:
    """log(sum(exp(x))) over the last axis, (..., 1): what the fused loss keeps, whatever the target."""
    rows = x.reshape(math.prod(x.shape[:-1]), x.shape[-1])
    if rows.size == 0:
        return np.full((*x.shape[:-1], 1), -np.inf, x.dtype)
    targets = np.zeros(len(rows), np.int64)
    lse = backend.cross_entropy_forward(rows, targets, ignore_index=-1, label_smoothing=0.0)[1]
    return lse.reshape(*x.shape[:-1], 1)


for _function in (softmax, log_softmax):
    setattr(Tensor, _function.__name__, _function)
