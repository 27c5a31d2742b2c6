"""Functions of each element: exp, log, tanh, sigmoid, relu, erf, gelu."""

from __future__ import annotations

from fastseq.autograd import Array, ArrayOrTensor, Tensor, result
from fastseq.backends import backend_of
from fastseq.functional import _check

_FROM_Y = ("exp", "tanh", "sigmoid", "relu")


def pointwise(x: ArrayOrTensor, function: str, parameter: float = 0.0) -> ArrayOrTensor:
    """One of the functions that the backends know, recorded."""
    values = _check.floats("x", x)
    backend = backend_of(values)
    y = backend.pointwise_forward(values, function=function, parameter=parameter)
    # Some derivatives are simplest in terms of y: exp' = y, tanh' = 1 - y^2, sigmoid' = y (1 - y).
    saved = y if function in _FROM_Y else values

    def backward(dy: Array) -> tuple[Array]:
        return (backend.pointwise_backward(saved, dy, function=function, parameter=parameter),)

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
    return pointwise(x, "exp")


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
    return pointwise(x, "log")


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
    return pointwise(x, "tanh")


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
    return pointwise(x, "sigmoid")


def relu(x: ArrayOrTensor) -> ArrayOrTensor:
    """The larger of x and 0, for each element; its gradient at 0 is 0.

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
    return pointwise(x, "relu")


def erf(x: ArrayOrTensor) -> ArrayOrTensor:
    """The error function 2 / sqrt(pi) times the integral of exp(-t^2) from 0 to x, of each element.

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
    >>> fs.functional.erf(np.array([0.0, np.inf]))
    array([0., 1.])
    """
    return pointwise(x, "erf")


def gelu(x: ArrayOrTensor, approximate: str = "none") -> ArrayOrTensor:
    """The product x Phi(x) for each element, Phi the normal distribution's function (Hendrycks & Gimpel 2016).

    The negative tail is exact to a few units in the last place too, where x (1 + erf(x / sqrt(2))) / 2 loses every digit.

    Parameters
    ----------
    x : ndarray or Tensor, float32 or float64
    approximate : {"none", "tanh"}
        "tanh" puts (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))) / 2 in Phi's place, as GPT-2 does.

    Returns
    -------
    ndarray or Tensor of x's shape

    Raises
    ------
    TypeError, ValueError
        If x is not a float32 or float64 array, or `approximate` is another word.

    Examples
    --------
    >>> import numpy as np
    >>> import fastseq as fs
    >>> fs.functional.gelu(np.array([0.0, 1.0])).round(4)
    array([0.    , 0.8413])
    """
    _check.choice("approximate", approximate, ("none", "tanh"))
    return pointwise(x, "gelu" if approximate == "none" else "gelu_tanh")


for _function in (exp, log, tanh, sigmoid, relu, erf, gelu):
    setattr(Tensor, _function.__name__, _function)
