"""More functions of each element for the layers of a network: leaky_relu, elu, selu, silu, softplus, mish and others."""

from __future__ import annotations

from fastseq.autograd import ArrayOrTensor, Tensor
from fastseq.functional import _check
from fastseq.functional.arithmetic import add, div, mul, neg
from fastseq.functional.pointwise import pointwise, tanh
from fastseq.functional.shape import where

# The fixed point of mean 0 and variance 1 (Klambauer et al. 2017, equation 14).
_SELU_ALPHA, _SELU_SCALE = 1.6732632423543772, 1.0507009873554805


def leaky_relu(x: ArrayOrTensor, negative_slope: float = 0.01) -> ArrayOrTensor:
    """x where it is above 0, negative_slope x elsewhere (Maas et al. 2013); the gradient at 0 is negative_slope.

    Parameters
    ----------
    x : ndarray or Tensor, float32 or float64
    negative_slope : float

    Returns
    -------
    ndarray or Tensor of x's shape

    Raises
    ------
    TypeError, ValueError
        If x is not a float32 or float64 array, or an argument is not a number that fits.

    Examples
    --------
    >>> import numpy as np
    >>> import fastseq as fs
    >>> fs.functional.leaky_relu(np.array([-1.0, 2.0]))
    array([-0.01,  2.  ])
    """
    return pointwise(x, "leaky_relu", _check.number("negative_slope", negative_slope))


def elu(x: ArrayOrTensor, alpha: float = 1.0) -> ArrayOrTensor:
    """x where it is above 0, alpha (exp(x) - 1) elsewhere (Clevert et al. 2015); the gradient at 0 is alpha.

    Parameters
    ----------
    x : ndarray or Tensor, float32 or float64
    alpha : float

    Returns
    -------
    ndarray or Tensor of x's shape

    Raises
    ------
    TypeError, ValueError
        If x is not a float32 or float64 array, or an argument is not a number that fits.

    Examples
    --------
    >>> import numpy as np
    >>> import fastseq as fs
    >>> fs.functional.elu(np.array([-np.inf, 2.0]))
    array([-1.,  2.])
    """
    return pointwise(x, "elu", _check.number("alpha", alpha))


def selu(x: ArrayOrTensor) -> ArrayOrTensor:
    """1.0507 elu(x, 1.6733): keeps activations at mean 0 and variance 1 (Klambauer et al. 2017).

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
    >>> fs.functional.selu(np.array([-np.inf, 1.0])).round(4)
    array([-1.7581,  1.0507])
    """
    return mul(elu(x, _SELU_ALPHA), _SELU_SCALE)


def silu(x: ArrayOrTensor) -> ArrayOrTensor:
    """x sigmoid(x), also called swish (Elfwing et al. 2017).

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
    >>> fs.functional.silu(np.array([0.0, 1.0])).round(4)
    array([0.    , 0.7311])
    """
    return pointwise(x, "silu")


def softplus(x: ArrayOrTensor, beta: float = 1.0) -> ArrayOrTensor:
    """log(1 + exp(beta x)) / beta: a ReLU without a kink.

    Exact to a few units in the last place on both sides, so that it needs no threshold from which on it is x.

    Parameters
    ----------
    x : ndarray or Tensor, float32 or float64
    beta : float
        Above 0; the larger, the sharper.

    Returns
    -------
    ndarray or Tensor of x's shape

    Raises
    ------
    TypeError, ValueError
        If x is not a float32 or float64 array, or an argument is not a number that fits.

    Examples
    --------
    >>> import numpy as np
    >>> import fastseq as fs
    >>> fs.functional.softplus(np.array([-np.inf, 0.0, 800.0])).round(4).tolist()
    [0.0, 0.6931, 800.0]
    """
    if _check.number("beta", beta) <= 0:
        raise ValueError(f"beta: expected a number above 0, got {beta}")
    return pointwise(x, "softplus") if beta == 1 else div(pointwise(mul(x, beta), "softplus"), beta)


def logsigmoid(x: ArrayOrTensor) -> ArrayOrTensor:
    """log(sigmoid(x)) = -softplus(-x), exact also where sigmoid(x) is 0.

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
    >>> fs.functional.logsigmoid(np.array([-1000.0, 0.0])).round(4).tolist()
    [-1000.0, -0.6931]
    """
    return neg(pointwise(neg(x), "softplus"))


def mish(x: ArrayOrTensor) -> ArrayOrTensor:
    """x tanh(softplus(x)) (Misra 2019).

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
    >>> fs.functional.mish(np.array([0.0, 1.0])).round(4)
    array([0.    , 0.8651])
    """
    return mul(x, tanh(pointwise(x, "softplus")))


def softsign(x: ArrayOrTensor) -> ArrayOrTensor:
    """x / (1 + |x|): a tanh with slower tails (Glorot & Bengio 2010).

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
    >>> fs.functional.softsign(np.array([-1.0, 3.0]))
    array([-0.5 ,  0.75])
    """
    return div(x, add(leaky_relu(x, -1.0), 1.0))  # |x|, and 1


def hardtanh(x: ArrayOrTensor, min_val: float = -1.0, max_val: float = 1.0) -> ArrayOrTensor:
    """x, but no less than min_val and no more than max_val; the gradient outside, and at both limits, is 0.

    Parameters
    ----------
    x : ndarray or Tensor, float32 or float64
    min_val, max_val : float

    Returns
    -------
    ndarray or Tensor of x's shape

    Raises
    ------
    TypeError, ValueError
        If x is not a float32 or float64 array, or an argument is not a number that fits.

    Examples
    --------
    >>> import numpy as np
    >>> import fastseq as fs
    >>> fs.functional.hardtanh(np.array([-3.0, 0.5, 3.0]))
    array([-1. ,  0.5,  1. ])
    """
    if not _check.number("min_val", min_val) < _check.number("max_val", max_val):
        raise ValueError(f"max_val: expected more than min_val {min_val}, got {max_val}")
    values = _check.floats("x", x)
    clipped = values.clip(min_val, max_val)
    return where((values > min_val) & (values < max_val), x, clipped)


def relu6(x: ArrayOrTensor) -> ArrayOrTensor:
    """min(max(x, 0), 6) (Howard et al. 2017); the gradient at 0 and 6 is 0.

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
    >>> fs.functional.relu6(np.array([-1.0, 2.0, 8.0]))
    array([0., 2., 6.])
    """
    return hardtanh(x, 0.0, 6.0)


for _function in (leaky_relu, elu, selu, silu, softplus, logsigmoid, mish, softsign, hardtanh, relu6):
    setattr(Tensor, _function.__name__, _function)
