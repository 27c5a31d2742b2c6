"""softmax and its logarithm."""

from __future__ import annotations

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
    """The logarithm of softmax, x - log(sum(exp(x))), along an axis; -inf where all of x is. A loss has it and the target in one pass: `cross_entropy`.

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
    y_last = backend.log_softmax_forward(values.swapaxes(axis, -1))

    def backward(dy: Array) -> tuple[Array]:
        # y = x - log(sum(exp(x)))
        return (backend.log_softmax_backward(y_last, dy.swapaxes(axis, -1)).swapaxes(axis, -1),)

    return result(y_last.swapaxes(axis, -1), (x,), backward, "log_softmax")


for _function in (softmax, log_softmax):
    setattr(Tensor, _function.__name__, _function)
