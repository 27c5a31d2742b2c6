"""Functions of each element: exp, log, tanh, sigmoid, relu."""

from __future__ import annotations

from fastseq.autograd import Array, ArrayOrTensor, Tensor, result
from fastseq.backends import backend_of
from fastseq.functional import _check


def _pointwise(x: ArrayOrTensor, function: str) -> ArrayOrTensor:
    values = _check.floats("x", x)
    backend = backend_of(values)
    y = backend.pointwise_forward(values, function=function)
    # Every derivative but the logarithm's is simplest in terms of y: exp' = y, tanh' = 1 - y^2, sigmoid' = y (1 - y).
    saved = values if function == "log" else y

    def backward(dy: Array) -> tuple[Array]:
        return (backend.pointwise_backward(saved, dy, function=function),)

    return result(y, (x,), backward, function)


def exp(x: ArrayOrTensor) -> ArrayOrTensor:
    """The exponential of each element.

    Parameters
    ----------
    x : ndarray or Tensor, float32 or float64

    Returns
    -------
    ndarray or Tensor of x's shape

    Raises
    ------
    TypeError
        If x is not a float32 or float64 array.

    Examples
    --------
    >>> import numpy as np
    >>> import fastseq as fs
    >>> fs.functional.exp(np.zeros(2))
    array([1., 1.])
    """
    return _pointwise(x, "exp")


def log(x: ArrayOrTensor) -> ArrayOrTensor:
    """The natural logarithm of each element: -inf at 0, NaN below.

    Parameters
    ----------
    x : ndarray or Tensor, float32 or float64

    Returns
    -------
    ndarray or Tensor of x's shape

    Raises
    ------
    TypeError
        If x is not a float32 or float64 array.

    Examples
    --------
    >>> import numpy as np
    >>> import fastseq as fs
    >>> fs.functional.log(np.ones(2))
    array([0., 0.])
    """
    return _pointwise(x, "log")


def tanh(x: ArrayOrTensor) -> ArrayOrTensor:
    """The hyperbolic tangent of each element.

    Parameters
    ----------
    x : ndarray or Tensor, float32 or float64

    Returns
    -------
    ndarray or Tensor of x's shape

    Raises
    ------
    TypeError
        If x is not a float32 or float64 array.

    Examples
    --------
    >>> import numpy as np
    >>> import fastseq as fs
    >>> fs.functional.tanh(np.zeros(2))
    array([0., 0.])
    """
    return _pointwise(x, "tanh")


def sigmoid(x: ArrayOrTensor) -> ArrayOrTensor:
    """The logistic function 1 / (1 + exp(-x)) of each element.

    Parameters
    ----------
    x : ndarray or Tensor, float32 or float64

    Returns
    -------
    ndarray or Tensor of x's shape

    Raises
    ------
    TypeError
        If x is not a float32 or float64 array.

    Examples
    --------
    >>> import numpy as np
    >>> import fastseq as fs
    >>> fs.functional.sigmoid(np.zeros(2))
    array([0.5, 0.5])
    """
    return _pointwise(x, "sigmoid")


def relu(x: ArrayOrTensor) -> ArrayOrTensor:
    """max(x, 0) of each element; its gradient at 0 is 0.

    Parameters
    ----------
    x : ndarray or Tensor, float32 or float64

    Returns
    -------
    ndarray or Tensor of x's shape

    Raises
    ------
    TypeError
        If x is not a float32 or float64 array.

    Examples
    --------
    >>> import numpy as np
    >>> import fastseq as fs
    >>> fs.functional.relu(np.array([-1.0, 2.0]))
    array([0., 2.])
    """
    return _pointwise(x, "relu")


for _function in (exp, log, tanh, sigmoid, relu):
    setattr(Tensor, _function.__name__, _function)
